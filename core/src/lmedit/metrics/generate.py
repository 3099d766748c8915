"""Continue many prompts at once, with kept keys and values: each row as if it were alone.

Rows stand aligned at their last prompt token (`replay.keep`), with explicit positions and a mask
of all columns, so new tokens share one column and sliding windows, which count columns, are right.
A row that is done leaves the batch. Nothing depends on the batch's other rows; the released code
masks the current token alone.

`greedy` is the real generation of Yang et al. 2025 (arXiv 2502.11177). `sampled` is ROME's
`util/generate.py:generate_fast`, which the fluency GE reads (Meng et al. 2022, section 3.3):
`max_total_tokens` counts the prompt too, the `top_k` best are renormalised, the temperature is 1,
and end-of-text does not stop it.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from lmedit.replay import keep
from lmedit.replay.batches import BATCH_TOKENS, by_length, encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits

    Pick = Callable[[list[int], Tensor], list[int]]
    """(row numbers, next-token logits of these rows) to one token each."""

PROTOCOL: Mapping[str, str] = MappingProxyType({
    "greedy": "greedy until end-of-text or the token limit",
    "sampled": "top-k renormalised, temperature 1, length with the prompt, no stop at end-of-text",
})  # fmt: skip


def greedy(
    lm: Lm,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> list[str]:
    """What the model writes after each of *prompts*, *under* its edit; the most probable tokens.

    The continuation alone, without special tokens; it ends before end-of-text (the tokenizer's
    and the generation config's) or after *max_new_tokens*.
    """
    rows = [encoded(lm, prompt, max_new_tokens) for prompt in prompts]
    wanted = [max_new_tokens] * len(rows)
    plan = _Plan(rows, wanted, _ends(lm), batch_tokens, under)
    new = _continued(lm, plan, lambda _, logits: logits.argmax(-1).tolist())
    return [_added_text(lm, row, tokens) for row, tokens in zip(rows, new, strict=True)]


def sampled(
    lm: Lm,
    prompts: Sequence[str],
    max_total_tokens: int,
    top_k: int = 5,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> list[str]:
    """Each prompt with what the model writes after it, drawn from the *top_k* best tokens.

    The whole text without special tokens: *max_total_tokens* with the prompt's (a longer prompt
    stays as it is). Every row draws from its own generator, seeded by *seed* and the prompt: the
    same prompt twice gives the same text twice, and torch's global generator is left alone.
    """
    rows = [encoded(lm, prompt) for prompt in prompts]
    wanted = [max(0, min(max_total_tokens, lm.max_positions) - len(row)) for row in rows]
    draws = [torch.Generator().manual_seed(_seed_of(seed, prompt)) for prompt in prompts]

    def pick(numbers: list[int], logits: Tensor) -> list[int]:
        ids, upto = _ladder(logits, top_k)
        random = [torch.rand(1, generator=draws[i], dtype=torch.float64) for i in numbers]
        chosen = torch.searchsorted(upto, torch.stack(random) * upto[:, -1:], right=True)
        return ids.gather(1, chosen.clamp(max=ids.shape[1] - 1))[:, 0].tolist()

    new = _continued(lm, _Plan(rows, wanted, frozenset(), batch_tokens, under), pick)
    return [_text(lm, row + tokens) for row, tokens in zip(rows, new, strict=True)]


def _ladder(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The *top_k* best ids and their summed-up probabilities (B, k).

    They stand in the order of their ids: the order of two nearly equal ones, which rounding may
    turn over, then moves no draw.
    """
    probabilities = logits.cpu().double().softmax(-1)
    ids = probabilities.topk(min(top_k, logits.shape[-1]), dim=-1).indices.sort(-1).values
    return ids, probabilities.gather(1, ids).cumsum(-1)


def _seed_of(seed: int, prompt: str) -> int:
    digest = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class _Plan:
    """What is to be continued: ``wanted[i]`` tokens after ``rows[i]``, or up to one of `ends`."""

    rows: Sequence[list[int]]
    wanted: Sequence[int]
    ends: frozenset[int]
    batch_tokens: int
    under: RowEdits | None

    def edited(self, live: Sequence[int]) -> AbstractContextManager[None]:
        """The rows *live* of a batch run under their edits."""
        return self.under.edits.on(self.under.at(live)) if self.under else nullcontext()


@torch.no_grad()
def _continued(lm: Lm, plan: _Plan, pick: Pick) -> list[list[int]]:
    """The tokens that *pick* puts after each row of *plan*."""
    new: list[list[int]] = [[] for _ in plan.rows]
    busy = [i for i, count in enumerate(plan.wanted) if count > 0]
    sizes = [len(plan.rows[i]) + plan.wanted[i] for i in busy]
    for group in by_length(sizes, plan.batch_tokens):
        live = [busy[i] for i in group]
        with plan.edited(live):
            inputs = _start(lm, [plan.rows[i] for i in live])
        while live:
            with plan.edited(live):
                picked = pick(live, lm.model(**inputs).logits[:, -1])
            for i, token in zip(live, picked, strict=True):
                new[i].append(token)
            going = [
                place for place, i in enumerate(live)
                if len(new[i]) < plan.wanted[i] and picked[place] not in plan.ends
            ]  # fmt: skip
            live = [live[place] for place in going]
            if live:
                _advance(inputs, picked, going)
    return [tokens[:-1] if tokens and tokens[-1] in plan.ends else tokens for tokens in new]


def _start(lm: Lm, rows: Sequence[list[int]]) -> dict[str, Any]:
    """The model's inputs for the last token of each row, all before it in a cache that grows."""
    inputs = keep(lm, rows, [len(row) - 1 for row in rows], layer=0).inputs
    cache = DynamicCache()
    for layer, (keys, values, _) in enumerate(inputs["past_key_values"] or ()):
        cache.update(keys, values, layer)
    return {**inputs, "past_key_values": cache, "use_cache": True}


def _advance(inputs: dict[str, Any], picked: Sequence[int], going: Sequence[int]) -> None:
    """Make *inputs* those of the next token: keep the rows *going*, and put *picked* in."""
    mask = inputs["attention_mask"]
    rows = torch.tensor(going, device=mask.device)
    if len(going) < len(mask):
        inputs["past_key_values"].batch_select_indices(rows)
    inputs["input_ids"] = torch.tensor(picked, device=mask.device)[rows, None]
    inputs["attention_mask"] = torch.cat([mask[rows], mask.new_ones(len(going), 1)], dim=1)
    if "position_ids" in inputs:
        inputs["position_ids"] = inputs["position_ids"][rows] + 1


def _ends(lm: Lm) -> frozenset[int]:
    """Ids of end-of-text: the tokenizer's, and those of the model's generation config."""
    config = getattr(lm.model, "generation_config", None)
    also = getattr(config, "eos_token_id", None)
    several = also if isinstance(also, list) else [also]
    return frozenset(int(i) for i in (lm.tokenizer.eos_token_id, *several) if i is not None)


def _text(lm: Lm, ids: Sequence[int]) -> str:
    return str(
        lm.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )  # fmt: skip


def _added_text(lm: Lm, row: list[int], new: list[int]) -> str:
    """What *new* adds to the text of *row* (some tokenizers drop a blank at a text's start)."""
    before, whole = _text(lm, row), _text(lm, row + new)
    return whole[len(before) :] if whole.startswith(before) else _text(lm, new)
