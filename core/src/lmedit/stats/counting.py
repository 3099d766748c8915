"""S = sum_n k_n k_n^T of several layers in one pass: streamed and resumable, with early stopping.

Keys are the inputs of a block's MLP output matrix (ROME, section 3.1 and appendix E.5), for all
true tokens of the documents. Only the blocks up to the deepest layer are run. Each expert of a
block has its own sum: of the tokens that are routed to it, with keys weighed by the gate.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm import tqdm

from lmedit.memory import in_parts
from lmedit.replay.batches import by_length
from lmedit.stats.solving import Convergence, Watch
from lmedit.storage.steps import tell_step
from lmedit.trace import captured

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import Corpus

GROUP = 100
"""How many documents are sorted by length and packed together; a checkpoint counts groups."""
BATCH_TOKENS = 4096
SAVE_SECONDS = 30.0


CHARACTERS = 64
"""How many characters are encoded at first, for each wanted token."""
MARGIN = 16
"""How many tokens at a cut may differ from those of the whole text."""


def first_tokens(lm: Lm, text: str, count: int) -> list[int]:
    """The first *count* tokens of *text*. Of a long text only a part is encoded."""
    characters = CHARACTERS * (count + MARGIN)
    while characters < len(text):
        ids = lm.encode(text[:characters])
        if len(ids) >= count + MARGIN:
            return ids[:count]
        characters *= 4
    return lm.encode(text)[:count]


@dataclass(frozen=True)
class Counting:
    """How many keys to sum, and when to stop early."""

    samples: int
    unit: Literal["documents", "tokens"] = "documents"
    max_length: int | None = None
    """Read at most this many tokens of a document; None: as many as the model has positions."""
    tolerance: float | None = None
    """Stop when the solutions for some keys change by less (`solving.Watch`). None: never."""

    def limit(self, lm: Lm) -> int:
        """How many tokens of a document are read at most."""
        return min(self.max_length or lm.max_positions, lm.max_positions)


@dataclass
class Moment:
    """The sum S (D, D) in float64, its tokens and documents, and how far it has converged."""

    sum: Tensor
    tokens: int = 0
    documents: int = 0
    settled: tuple[Convergence, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


Place = int | tuple[int, int]
"""A layer, or a layer and one of its experts."""


def places_of(lm: Lm, layers: Sequence[int]) -> list[Place]:
    """*layers*, ascending; a block of experts has a place for each expert."""
    places: list[Place] = []
    for layer in sorted(set(layers)):
        count = lm.experts(layer)
        places += [layer] if count is None else [(layer, expert) for expert in range(count)]
    return places


def name_of(place: Place) -> str:
    """The place's name in files: the layer, and the expert behind a dot."""
    return str(place) if isinstance(place, int) else f"{place[0]}.{place[1]}"


def second_moments(
    lm: Lm, layers: Sequence[Place], corpus: Corpus, counting: Counting, checkpoint: Checkpoint
) -> dict[Place, Moment]:
    """S of each of *layers* over the keys of *corpus*, up to the requested sample size.

    In a block of experts, name each expert (`places_of`).

    Documents are read in the order of the corpus. An interrupted call continues from *checkpoint*
    and gives the same bits. If the memory is full, batches are halved.
    """
    work = _Work(lm, tuple(sorted(set(layers), key=_order)), counting)
    work.load(checkpoint)
    saved = time.monotonic()
    bar = tqdm(
        total=counting.samples,
        initial=work.done,
        disable=None,
        desc=f"statistics of {len(work.layers)} layer(s)",
        unit=counting.unit.rstrip("s"),
    )
    with bar:
        for group in _groups(corpus, work.documents, counting):
            before = work.done
            work.add(group)
            bar.update(work.done - before)
            tell_step(f"statistics, {counting.unit}", work.done, counting.samples)
            if work.done >= counting.samples or work.enough():
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                work.save(checkpoint)
                saved = time.monotonic()
    return {
        layer: Moment(S, work.keys[layer], work.documents, tuple(work.watches[layer].seen))
        for layer, S in work.sums.items()
    }


class _Work:
    """The sums so far, and their numbers of tokens and documents."""

    def __init__(self, lm: Lm, layers: tuple[Place, ...], counting: Counting) -> None:
        self.lm, self.layers, self.counting = lm, layers, counting
        self.tokens = self.documents = 0
        self.keys: dict[Place, int] = dict.fromkeys(layers, 0)
        self.sums = {}
        for layer in layers:
            size = lm.mlp_width(_order(layer)[0])
            self.sums[layer] = torch.zeros(size, size, dtype=torch.float64)
        self.watches = {layer: Watch(counting.tolerance) for layer in layers}

    @property
    def done(self) -> int:
        return self.documents if self.counting.unit == "documents" else self.tokens

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from the last save, if there is one."""
        state = checkpoint.load()
        if state is None:
            return
        tensors, facts = state
        self.tokens, self.documents = facts["tokens"], facts["documents"]
        for layer in self.layers:
            name = name_of(layer)
            self.keys[layer] = facts["keys"].get(name, 0)
            self.sums[layer] = tensors[f"sum.{name}"]
            self.watches[layer].restore(tensors, facts["seen"][name], name)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save everything that `load` needs."""
        tensors = {f"sum.{name_of(layer)}": S for layer, S in self.sums.items()}
        seen = {}
        for layer, watch in self.watches.items():
            tensors |= watch.tensors(name_of(layer))
            seen[name_of(layer)] = [vars(each) for each in watch.seen]
        keys = {name_of(layer): count for layer, count in self.keys.items()}
        facts = {"tokens": self.tokens, "documents": self.documents, "seen": seen, "keys": keys}
        checkpoint.save(tensors, facts)

    def add(self, texts: Sequence[str]) -> None:
        """Add the keys of a group of documents to the sums."""
        limit = self.counting.limit(self.lm)
        rows = sorted((first_tokens(self.lm, text, limit) for text in texts), key=len)
        if self.counting.unit == "tokens":
            rows = _first_tokens(rows, self.counting.samples - self.tokens)
        for batch in pack([row for row in rows if row]):
            for keys in in_parts(
                lambda part: keys_of(self.lm, self.layers, part), batch, len(batch)
            ):
                self.tokens += keys.tokens
                for layer, found in keys.of.items():
                    self.keys[layer] += len(found)
                    self.sums[layer] += (found.T @ found).double().cpu()
                    self.watches[layer].look(found)
        self.documents += len(texts)

    def enough(self) -> bool:
        """Whether every layer's solutions have converged; checked when the tokens have doubled."""
        settled = [
            watch.settled(self.sums[layer], self.keys[layer])
            for layer, watch in self.watches.items()
        ]
        return all(settled)


def _groups(corpus: Corpus, skip: int, counting: Counting) -> Iterator[list[str]]:
    wanted = counting.samples if counting.unit == "documents" else None
    documents = islice(corpus, skip, wanted)
    while group := list(islice(documents, GROUP)):
        yield group


def _first_tokens(rows: Sequence[list[int]], count: int) -> list[list[int]]:
    """Cut rows so that together they have at most *count* tokens."""
    kept: list[list[int]] = []
    for row in rows:
        if count <= 0:
            break
        kept.append(row[:count])
        count -= len(row)
    return kept


def pack(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Batch rows of ascending length, with at most BATCH_TOKENS padded tokens per batch."""
    for members in by_length([len(row) for row in rows], BATCH_TOKENS):
        yield [rows[i] for i in members]


def _order(place: Place) -> tuple[int, int]:
    """The layer and the expert of *place*; -1 if it has none."""
    return (place, -1) if isinstance(place, int) else place


@dataclass(frozen=True)
class Keys:
    """The keys (n, D) of some texts by place, and the number of tokens that were read."""

    of: dict[Place, Tensor]
    tokens: int


@torch.no_grad()
def keys_of(lm: Lm, layers: Sequence[Place], rows: Sequence[list[int]]) -> Keys:
    """The keys of all true tokens of *rows*, by layer, in float32 or finer.

    For an expert, only those that are routed to it. *layers* must ascend. Only the blocks up to the
    last one are run.
    """
    batch = lm.batch(rows)
    true = batch.mask.reshape(-1).bool()
    boxes = {}
    with ExitStack() as stack:
        for place in layers:
            where = (place,) if isinstance(place, int) else place
            module = lm.mlp_out_module(*where)
            boxes[place] = stack.enter_context(captured(module, stop=place == layers[-1]))
        lm.logits(batch)
    keys = {}
    for place, box in boxes.items():
        found = box.input.reshape(len(true), -1)[true]
        if not isinstance(place, int):
            found = found[found.any(dim=-1)]
        keys[place] = found.to(torch.promote_types(found.dtype, torch.float32))
    return Keys(keys, int(true.sum()))
