"""C = E[k k^T] over a corpus (section 3.1, appendix E.5): streamed, resumable, uncentred."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lmedit.errors import CasesError, NotPreparedError
from lmedit.metrics.passes import by_length
from lmedit.trace import captured
from lmedit_rome.equations import cholesky, second_moment_sum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm
    from lmedit_rome.options import RomeOptions

GROUP = 100
"""Documents sorted by length and packed together; the unit of a checkpoint."""
BATCH_TOKENS = 4096
SAVE_SECONDS = 30.0


@dataclass
class Moment:
    """The running sum S (D, D) in float64, and what went into it."""

    sum: Tensor
    tokens: int = 0
    documents: int = 0


def second_moment(lm: Lm, options: RomeOptions, corpus: Corpus, checkpoint: Checkpoint) -> Moment:
    """S and count over the keys of all tokens of *corpus*, up to the sample size asked for.

    Documents are taken in the corpus' order. Interrupted, it goes on from *checkpoint* and ends
    at the same bits.
    """
    moment = _start(lm, options, checkpoint)
    saved = time.monotonic()
    bar = tqdm(total=options.samples, initial=_done(moment, options), disable=None,
               desc="statistics", unit=options.sample_unit.rstrip("s"))  # fmt: skip
    with bar:
        for group in _groups(corpus, moment.documents, _documents_wanted(options)):
            before = _done(moment, options)
            _add_group(lm, options, moment, group)
            bar.update(_done(moment, options) - before)
            if _done(moment, options) >= options.samples:
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(moment, checkpoint)
                saved = time.monotonic()
    return moment


def factor(moment: Moment, options: RomeOptions) -> Tensor:
    """The Cholesky factor of C; refuses too few samples, and a C that is not definite."""
    size = len(moment.sum)
    if moment.tokens < 2 * size and not options.ridge:
        raise NotPreparedError(
            f"rome: {moment.tokens} keys are too few for {size} dimensions (at least {2 * size}); "
            "give a larger --corpus, or -o ridge 0.01"
        )
    try:
        return cholesky(moment.sum / moment.tokens, options.ridge)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        raise NotPreparedError(
            "rome: the statistics are not positive definite; give more varied text, "
            "or -o ridge 0.01"
        ) from error


def _start(lm: Lm, options: RomeOptions, checkpoint: Checkpoint) -> Moment:
    state = checkpoint.load()
    if state is not None:
        tensors, facts = state
        return Moment(tensors["sum"], facts["tokens"], facts["documents"])
    size = lm.weight(lm.mlp_out(_layer(options))).shape[1]
    return Moment(torch.zeros(size, size, dtype=torch.float64))


def _save(moment: Moment, checkpoint: Checkpoint) -> None:
    facts: dict[str, Any] = {"tokens": moment.tokens, "documents": moment.documents}
    checkpoint.save({"sum": moment.sum}, facts)


def _documents_wanted(options: RomeOptions) -> int | None:
    return options.samples if options.sample_unit == "documents" else None


def _done(moment: Moment, options: RomeOptions) -> int:
    return moment.documents if options.sample_unit == "documents" else moment.tokens


def _groups(corpus: Corpus, skip: int, wanted: int | None) -> Iterator[list[str]]:
    documents = islice(corpus, skip, wanted)
    while group := list(islice(documents, GROUP)):
        yield group


def _add_group(lm: Lm, options: RomeOptions, moment: Moment, texts: Sequence[str]) -> None:
    limit = min(options.max_length or lm.max_positions, lm.max_positions)
    rows = sorted((lm.encode(text)[:limit] for text in texts), key=len)
    if options.sample_unit == "tokens":
        rows = _first_tokens(rows, options.samples - moment.tokens)
    for batch in _packed([row for row in rows if row]):
        keys = keys_of(lm, _layer(options), batch)
        moment.sum += second_moment_sum(keys).double().cpu()
        moment.tokens += len(keys)
    moment.documents += len(texts)


def _first_tokens(rows: Sequence[list[int]], count: int) -> list[list[int]]:
    """Rows cut so that they hold at most *count* tokens together."""
    kept: list[list[int]] = []
    for row in rows:
        if count <= 0:
            break
        kept.append(row[:count])
        count -= len(row)
    return kept


def _packed(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Rows of ascending length in batches of at most BATCH_TOKENS padded tokens."""
    for members in by_length([len(row) for row in rows], BATCH_TOKENS):
        yield [rows[i] for i in members]


@torch.no_grad()
def keys_of(lm: Lm, layer: int, rows: Sequence[list[int]]) -> Tensor:
    """The keys (tokens, D) of all true tokens of *rows*, in float32 or finer.

    Only the blocks up to *layer* are run.
    """
    batch = lm.batch(rows)
    with captured(lm.mlp_out_module(layer), stop=True) as box:
        lm.logits(batch)
    keys = box.input.reshape(batch.mask.numel(), -1)[batch.mask.reshape(-1).bool()]
    return keys.to(torch.promote_types(keys.dtype, torch.float32))


def _layer(options: RomeOptions) -> int:
    if options.layer is None:
        raise CasesError("rome: the layer is not resolved; build options with build_options")
    return options.layer
