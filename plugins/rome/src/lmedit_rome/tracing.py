"""Causal tracing (section 2.1, appendix B.1): which states restore the answer?

The subject's embeddings are disturbed. Then one clean state is restored at a time. A state at token
i in block l changes only the tokens from i on and the blocks above l, so only these run again. The
tokens before i keep their disturbed keys and values. One staircase pass per token serves all layers
(`lmedit.replay.staircase`). Where parts of a pass give other logits, every run is a whole pass
(`lmedit_rome.whole_runs`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from lmedit.memory import in_parts
from lmedit.replay import Prefixed, ways_of
from lmedit.replay.staircase import climbing
from lmedit.storage.steps import tell_step
from lmedit.trace import captured, changed
from lmedit_rome.restoring import (
    KINDS,
    PARTS,
    SEVERED,
    STATE,
    Group,
    TraceSettings,
    chance,
    disturb,
    modules_of,
)
from lmedit_rome.whole_runs import WholeRuns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Lm, Request
    from lmedit.replay import Kept


@dataclass(frozen=True)
class Trace:
    """P(answer) with one clean state restored, as the mean over the noise samples.

    It is the joint probability of the answer's tokens.

    `scores` holds a table (T, L) by token and layer for each kind. For `mlp` and `attention` the
    layer is the centre of the window. Tokens before the subject have the disturbed run's value.
    """

    tokens: list[str]
    subject: tuple[int, int]
    answer: str
    clean: float
    disturbed: float
    scores: dict[str, Tensor]
    severed: dict[str, Tensor]  # (L,) each

    @property
    def total_effect(self) -> float:
        """TE = P(clean) - P(disturbed)."""
        return self.clean - self.disturbed

    def indirect(self, kind: str) -> Tensor:
        """IE = P(restored) - P(disturbed), (T, L)."""
        return self.scores[kind] - self.disturbed


@torch.no_grad()
def subject_noise(lm: Lm, subjects: Sequence[str], times: float = 3.0) -> float:
    """nu = times * the standard deviation of the subjects' embeddings (appendix B.1)."""
    ids = [i for subject in subjects for i in lm.encode(subject)]
    table = lm.model.get_input_embeddings()
    return times * float(table(torch.tensor(ids, device=lm.device)).float().std())


@torch.no_grad()
def trace(
    lm: Lm,
    request: Request,
    setup: TraceSettings,
    span: tuple[int, int] | None = None,
    kinds: Sequence[str] = KINDS,
) -> Trace:
    """Trace the request's present answer: all tokens of ``target_true``.

    P(answer) is their joint probability. Without ``target_true``, trace the model's own top token
    after the prompt, as the paper does. The noise is added to the subject's tokens, or to those of
    another *span* [start, end).
    """
    ids, *subject = lm.subject_span(request.prompt, request.subject)
    start, end = span or subject
    answer: list[int] | None = None
    if request.target_true is not None:
        ids, answer = lm.with_target(request.text, request.target_true)
        start, end = min(start, len(ids) - 1), min(end, len(ids))
    runs = _Disturbed if _runs_in_parts(lm) else WholeRuns
    run = runs(lm, ids, (start, end), setup, answer)
    kinds = [kind for kind in kinds if kind == STATE or any(modules_of(lm, kind))]
    L, T = lm.n_layers, len(ids)
    scores = {kind: torch.full((T, L), run.disturbed) for kind in kinds}
    cut = {name: part for name, part in SEVERED.items() if any(modules_of(lm, part))}
    severed: dict[str, Tensor] = {}
    for token in range(start, T):
        groups = [Group(kind, layer) for kind in kinds for layer in range(L)]
        if token == end - 1:
            groups += [Group(STATE, layer, part) for part in cut.values() for layer in range(L)]
        found = run.restore(token, groups)
        for kind in kinds:
            scores[kind][token] = torch.tensor([found[Group(kind, layer)] for layer in range(L)])
        if span is None:  # a control, with a span of its own, is not shown
            _tell_row(lm, ids, (start, end), token, {k: scores[k] for k in kinds})
        if token == end - 1:
            for name, part in cut.items():
                values = [found[Group(STATE, layer, part)] for layer in range(L)]
                severed[name] = torch.tensor(values)
    tokens = [lm.decode([i]) for i in ids]
    return Trace(
        tokens, (start, end), lm.decode(run.answer), run.clean, run.disturbed, scores, severed
    )


def _tell_row(
    lm: Lm, ids: list[int], subject: tuple[int, int], token: int, scores: Mapping[str, Tensor]
) -> None:
    """Tell a watcher the row of *token* in each table of *scores*."""
    tell_step(
        "causal trace, token",
        token + 1,
        len(ids),
        tokens=[lm.decode([i]) for i in ids],
        subject=list(subject),
        token=token,
        rows={kind: table[token].tolist() for kind, table in scores.items()},
    )


def _runs_in_parts(lm: Lm) -> bool:
    """Whether parts of a pass of *lm* give its plain logits, and every block has every part."""
    ways = ways_of(lm)
    return ways.cached and ways.stairs and all(all(modules_of(lm, part)) for part in PARTS)


class _Disturbed:
    """One clean run and `samples` disturbed runs, with the states that later runs need."""

    def __init__(
        self,
        lm: Lm,
        ids: list[int],
        subject: tuple[int, int],
        setup: TraceSettings,
        answer: list[int] | None = None,
    ) -> None:
        """Run the prompt *ids* and *answer*; without it, the answer is the top token."""
        from transformers import DynamicCache

        self.lm, self.ids, self.setup = lm, ids, setup
        whole = [*ids, *(answer or [])[:-1]]
        rows = [whole] * (1 + setup.samples)
        self.cache = DynamicCache()
        with ExitStack() as stack:
            stack.enter_context(disturb(lm, subject, setup))
            blocks = [stack.enter_context(captured(lm.block(b))) for b in range(lm.n_layers)]
            parts = {
                part: [stack.enter_context(captured(m)) for m in modules_of(lm, part) if m]
                for part in PARTS
            }
            batch = lm.batch(rows).ids
            logits = lm.model(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                use_cache=True,
                past_key_values=self.cache,
                logits_to_keep=len(answer or [0]),
            ).logits
        self.answer = answer or [int(logits[0, -1].argmax())]
        p = chance(logits, self.answer)
        self.clean = float(p[0])
        self.disturbed = float(p[1:].mean())
        shape = (len(rows), len(whole), -1)
        self.entering = [blocks[0].input, *(box.output for box in blocks)]  # (1 + n, T, H) each
        self.parts = {p: [box.output.reshape(shape) for box in found] for p, found in parts.items()}
        self.prefixed = Prefixed(lm, rows[1:], self.cache, slice(1, None))

    def restore(self, token: int, groups: Sequence[Group]) -> dict[Group, float]:
        """P(answer) for each of *groups*, with clean states restored at *token*."""
        width, L = self.setup.window, self.lm.n_layers
        ordered = sorted(groups, key=lambda group: group.start(L, width))
        kept = self.prefixed.after(token)
        found: dict[Group, float] = {}
        at_once = max(1, self.setup.rows // self.setup.samples)
        for part in in_parts(lambda some: self._climb(token, kept, some), ordered, at_once):
            found |= part
        return found

    def _climb(self, token: int, kept: Kept, groups: Sequence[Group]) -> dict[Group, float]:
        """One pass. Its first group restores nothing and runs from block 0 on."""
        n, L, width = self.setup.samples, self.lm.n_layers, self.setup.window
        starts = [0, *(group.start(L, width) for group in groups)]
        total = n * len(starts)
        alive = list(accumulate(n * starts.count(block) for block in range(L)))
        entering = {}
        for block in sorted(set(starts)):
            states = [
                self._joining(token, block, group)
                for group in groups
                if group.start(L, width) == block
            ]
            own = [self.entering[0][1:, token:]] if block == 0 else []
            entering[block] = torch.cat([*own, *states])
        with ExitStack() as stack:
            stack.enter_context(climbing(self.lm, alive, total, entering))
            for part in PARTS:
                for block, module in enumerate(modules_of(self.lm, part)):
                    put = self._replacements(token, block, part, groups)
                    if put and module is not None:
                        stack.enter_context(changed(module, _putting(put, alive[block])))
            first = len(self.ids) - 1 - token
            at = range(first, first + len(self.answer))
            logits = kept.repeat(len(starts)).logits(at)
        p = chance(logits, self.answer).reshape(len(starts), n).mean(1)
        return dict(zip(groups, p[1:].tolist(), strict=True))

    def _joining(self, token: int, block: int, group: Group) -> Tensor:
        """The input of a group's first block, (n, S, H)."""
        states = self.entering[block][1:, token:]
        if group.kind != STATE:
            return states
        clean = self.entering[block][:1, token : token + 1].expand(len(states), -1, -1)
        return torch.cat([clean, states[:, 1:]], dim=1)

    def _replacements(
        self, token: int, block: int, part: str, groups: Sequence[Group]
    ) -> dict[int, Tensor]:
        """The outputs (n, H) to restore, for each group that replaces this part, by place."""
        L, width, n = self.lm.n_layers, self.setup.window, self.setup.samples
        outputs = self.parts[part][block][:, token]  # (1 + n, H)
        put = {}
        for place, group in enumerate(groups, start=1):
            if block in group.window(L, width):
                if group.severed == part:
                    put[place] = outputs[1:]
                elif group.kind == part:
                    put[place] = outputs[:1].expand(n, -1)
        return put


def _putting(put: dict[int, Tensor], alive: int) -> Any:
    """Replace a module's output at the first position, in the rows of some groups."""
    n = len(next(iter(put.values())))
    rows = torch.cat([torch.arange(place * n, (place + 1) * n) for place in put])
    values = torch.cat(list(put.values()))

    def change(_: Tensor, out: Tensor) -> Tensor:
        whole = out.reshape(alive, -1, out.shape[-1]).clone()
        whole[rows.to(out.device), 0] = values.to(whole)
        return whole.reshape(out.shape)

    return change
