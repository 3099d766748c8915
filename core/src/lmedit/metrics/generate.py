"""Continue many prompts in one batch, with a cache. Each row gives the result it has alone.

Rows are aligned at their last prompt token (`replay.keep`), with explicit positions and a mask of
all columns. So new tokens share one column, and sliding windows, which count columns, are right. A
finished row leaves the batch. No row depends on the other rows. The released code masks only the
current token.

`greedy` is the real generation of Yang et al. 2025 (arXiv 2502.11177). `sample` is ROME's
`util/generate.py:generate_fast`, which the fluency GE uses (Meng et al. 2022, section 3.3). There,
`max_total_tokens` include the prompt, and the `top_k` best are renormalised. The temperature is 1,
and end-of-text does not stop a row.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmedit.models.identity import ends_of
from lmedit.replay import keep, ways_of
from lmedit.replay.batches import BATCH_TOKENS, by_length, encode_prompt, read_rows
from lmedit.replay.unmerged import RowEdits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit.models import Lm

    Pick = Callable[[list[int], Tensor], list[int]]
    """Maps (row numbers, next-token logits of these rows) to one token for each row."""


def greedy(
    lm: Lm,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
    enough: Callable[[str], bool] = lambda _: False,
) -> list[str]:
    """Continue each prompt *under* its edit with the most probable tokens.

    Returns only the continuation, without special tokens. It ends before end-of-text (of the
    tokenizer or the generation config) or after *max_new_tokens*. It ends earlier if its text is
    *enough* for the caller.
    """
    rows = [encode_prompt(lm, prompt, max_new_tokens) for prompt in prompts]

    def may_end(i: int, new: Sequence[int]) -> bool:
        return enough(_added_text(lm, rows[i], list(new)))

    new = _greedily(lm, rows, max_new_tokens, batch_tokens, under, may_end)
    return [_added_text(lm, row, tokens) for row, tokens in zip(rows, new, strict=True)]


def greedy_ids(
    lm: Lm,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> list[list[int]]:
    """As `greedy`: the tokens of each continuation, without end-of-text."""
    rows = [encode_prompt(lm, prompt, max_new_tokens) for prompt in prompts]
    return _greedily(lm, rows, max_new_tokens, batch_tokens, under)


def _greedily(
    lm: Lm,
    rows: Sequence[list[int]],
    most: int,
    batch_tokens: int,
    under: RowEdits | None,
    may_end: Callable[[int, Sequence[int]], bool] = lambda *_: False,
) -> list[list[int]]:
    """At most *most* tokens after each of *rows*; `_Task` has the other values."""
    task = _Task(rows, [most] * len(rows), _end_tokens(lm), batch_tokens, under, may_end)
    return _continue(lm, task, lambda _, logits: logits.argmax(-1).tolist())


def added_text(lm: Lm, prompt: str, new: Sequence[int]) -> str:
    """The text of the tokens *new* behind *prompt*, without special tokens."""
    return _added_text(lm, encode_prompt(lm, prompt), list(new))


def sample(
    lm: Lm,
    prompts: Sequence[str],
    max_total_tokens: int,
    top_k: int = 5,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> list[str]:
    """Each prompt with a continuation that is drawn from the *top_k* best tokens.

    Returns the whole text without special tokens. It has *max_total_tokens* with the prompt; a
    longer prompt is not continued. In a chat, the template's text is not part of it. Every row has
    its own generator, seeded by *seed* and the prompt. So the same prompt gives the same text, and
    torch's global generator stays unchanged.
    """
    rows = [encode_prompt(lm, prompt) for prompt in prompts]
    bare = [lm.chat.bare(prompt) if lm.chat else prompt for prompt in prompts]
    more = [
        len(row) - len(encode_prompt(lm, text)) if text != prompt else 0
        for row, text, prompt in zip(rows, bare, prompts, strict=True)
    ]
    wanted = [
        max(0, min(max_total_tokens + template, lm.max_positions) - len(row))
        for row, template in zip(rows, more, strict=True)
    ]
    draws = [torch.Generator().manual_seed(_seed_of(seed, prompt)) for prompt in prompts]

    def pick(numbers: list[int], logits: Tensor) -> list[int]:
        ids, upto = _top_probabilities(logits, top_k)
        random = [torch.rand(1, generator=draws[i], dtype=torch.float64) for i in numbers]
        chosen = torch.searchsorted(upto, torch.stack(random) * upto[:, -1:], right=True)
        return ids.gather(1, chosen.clamp(max=ids.shape[1] - 1))[:, 0].tolist()

    new = _continue(lm, _Task(rows, wanted, frozenset(), batch_tokens, under), pick)
    return [
        f"{text} {_added_text(lm, row, tokens)}" if template else _text(lm, row + tokens)
        for text, template, row, tokens in zip(bare, more, rows, new, strict=True)
    ]


def _top_probabilities(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The *top_k* best ids and their cumulative probabilities (B, k).

    They are sorted by id: if rounding exchanges two ids of nearly equal probability, no draw
    changes.
    """
    probabilities = logits.cpu().double().softmax(-1)
    ids = probabilities.topk(min(top_k, logits.shape[-1]), dim=-1).indices.sort(-1).values
    return ids, probabilities.gather(1, ids).cumsum(-1)


def _seed_of(seed: int, prompt: str) -> int:
    digest = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class _Task:
    """A task: continue by ``wanted[i]`` tokens after ``rows[i]``, or until one of `ends`."""

    rows: Sequence[list[int]]
    wanted: Sequence[int]
    ends: frozenset[int]
    batch_tokens: int
    under: RowEdits | None
    may_end: Callable[[int, Sequence[int]], bool] = lambda *_: False
    """Whether row i may end after these tokens."""

    def goes_on(self, i: int, new: Sequence[int]) -> bool:
        """Whether a token follows after the *new* ones of row i, of which there is one at least."""
        more = len(new) < self.wanted[i] and new[-1] not in self.ends
        return more and not self.may_end(i, new)

    def edited(self, live: Sequence[int]) -> AbstractContextManager[None]:
        """Run the rows *live* of a batch under their edits."""
        return self.under.edits.on(self.under.at(live)) if self.under else nullcontext()


@torch.no_grad()
def _continue(lm: Lm, plan: _Task, pick: Pick) -> list[list[int]]:
    """The tokens that *pick* chooses after each row of *plan*."""
    new: list[list[int]] = [[] for _ in plan.rows]
    busy = [i for i, count in enumerate(plan.wanted) if count > 0]
    sizes = [len(plan.rows[i]) + plan.wanted[i] for i in busy]
    if not ways_of(lm).cached:
        return _continue_whole(lm, plan, pick, new, busy)
    for group in by_length(sizes, plan.batch_tokens):
        live = [busy[i] for i in group]
        with plan.edited(live):
            inputs = _start(lm, [plan.rows[i] for i in live])
        while live:
            with plan.edited(live):
                picked = pick(live, lm.model(**inputs).logits[:, -1])
            for i, token in zip(live, picked, strict=True):
                new[i].append(token)
            going = [place for place, i in enumerate(live) if plan.goes_on(i, new[i])]
            live = [live[place] for place in going]
            if live:
                _advance(inputs, picked, going)
    return [tokens[:-1] if tokens and tokens[-1] in plan.ends else tokens for tokens in new]


def _continue_whole(
    lm: Lm, plan: _Task, pick: Pick, new: list[list[int]], live: list[int]
) -> list[list[int]]:
    """As `_continue`, with a whole pass for each token: for models whose caches cannot be cut."""
    while live:
        rows = [[*plan.rows[i], *new[i]] for i in live]
        at = [[len(row) - 1] for row in rows]
        under = plan.under and RowEdits(plan.under.edits, plan.under.at(live))
        found = read_rows(
            lm, rows, lambda _, logits: logits[-1], plan.batch_tokens, at, under=under
        )
        for i, token in zip(live, pick(live, torch.stack(found)), strict=True):
            new[i].append(token)
        live = [i for i in live if plan.goes_on(i, new[i])]
    return [tokens[:-1] if tokens and tokens[-1] in plan.ends else tokens for tokens in new]


def _start(lm: Lm, rows: Sequence[list[int]]) -> dict[str, Any]:
    """The model's inputs for the last token of each row; a growing cache holds all others."""
    from transformers import DynamicCache

    inputs = keep(lm, rows, [len(row) - 1 for row in rows], layer=0).inputs
    cache = DynamicCache()
    for layer, (keys, values, _) in enumerate(inputs["past_key_values"] or ()):
        cache.update(keys, values, layer)
    return {**inputs, "past_key_values": cache, "use_cache": True}


def _advance(inputs: dict[str, Any], picked: Sequence[int], going: Sequence[int]) -> None:
    """Change *inputs* to the next token: keep the rows *going*, and insert *picked*."""
    mask = inputs["attention_mask"]
    rows = torch.tensor(going, device=mask.device)
    if len(going) < len(mask):
        inputs["past_key_values"].batch_select_indices(rows)
    inputs["input_ids"] = torch.tensor(picked, device=mask.device)[rows, None]
    inputs["attention_mask"] = torch.cat([mask[rows], mask.new_ones(len(going), 1)], dim=1)
    if "position_ids" in inputs:
        inputs["position_ids"] = inputs["position_ids"][rows] + 1


def _end_tokens(lm: Lm) -> frozenset[int]:
    """Ids of end-of-text: of the tokenizer, and of the model's generation config."""
    own = lm.tokenizer.eos_token_id
    return frozenset([*([] if own is None else [int(own)]), *ends_of(lm.model)])


def _text(lm: Lm, ids: Sequence[int]) -> str:
    return str(
        lm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def _added_text(lm: Lm, row: list[int], new: list[int]) -> str:
    """The text that *new* adds to *row*; some tokenizers drop a blank in front of a text."""
    before, whole = _text(lm, row), _text(lm, row + new)
    return whole[len(before) :] if whole.startswith(before) else _text(lm, new)
