"""Causal tracing (section 2.1, appendix B.1): which states restore the answer?

The subject's embeddings are disturbed. Then one clean state is restored at a time. A state at token
i in block l changes only the tokens from i on and the blocks above l, so only these run again. The
tokens before i keep their disturbed keys and values. One staircase pass per token serves all layers
(`lmedit.replay.staircase`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import RequestError
from lmedit.memory import in_parts
from lmedit.replay import Prefixed, ways_of
from lmedit.replay.staircase import climbing
from lmedit.trace import captured, changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from lmedit import Lm, Request
    from lmedit.replay import Kept

STATE, MLP, ATTENTION = "state", "mlp", "attention"
PARTS = (MLP, ATTENTION)
KINDS = (STATE, *PARTS)
SEVERED = {"state, mlp severed": MLP, "state, attention severed": ATTENTION}
"""At the subject's last token: a clean state, and above it one part keeps its disturbed outputs."""


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


@dataclass(frozen=True)
class TraceSettings:
    """The settings of a trace: the noise's standard deviation, samples, window, seed."""

    noise: float
    samples: int = 10
    window: int = 10
    seed: int = 0
    rows: int = 512


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
    run = _Disturbed(lm, ids, (start, end), setup, answer)
    L, T = lm.n_layers, len(ids)
    scores = {kind: torch.full((T, L), run.disturbed) for kind in kinds}
    severed: dict[str, Tensor] = {}
    for token in range(start, T):
        groups = [_Group(kind, layer) for kind in kinds for layer in range(L)]
        if token == end - 1:
            groups += [
                _Group(STATE, layer, part) for part in SEVERED.values() for layer in range(L)
            ]
        found = run.restore(token, groups)
        for kind in kinds:
            scores[kind][token] = torch.tensor([found[_Group(kind, layer)] for layer in range(L)])
        if token == end - 1:
            for name, part in SEVERED.items():
                values = [found[_Group(STATE, layer, part)] for layer in range(L)]
                severed[name] = torch.tensor(values)
    tokens = [lm.decode([i]) for i in ids]
    return Trace(
        tokens, (start, end), lm.decode(run.answer), run.clean, run.disturbed, scores, severed
    )


@dataclass(frozen=True)
class _Group:
    """The states to restore: a kind at a layer. `severed` names the part that stays disturbed."""

    kind: str
    layer: int
    severed: str | None = None

    def window(self, layers: int, width: int) -> range:
        """The blocks in which the part is replaced: *width* of them, fewer at the ends."""
        if self.kind == STATE:
            return range(self.layer + 1, layers) if self.severed else range(0)
        below = width // 2
        return range(max(0, self.layer - below), min(layers, self.layer - below + width))

    def start(self, layers: int, width: int) -> int:
        """The first block whose run differs from the disturbed one."""
        return self.layer + 1 if self.kind == STATE else self.window(layers, width).start


def check_traceable(lm: Lm) -> None:
    """Raise `RequestError` if parts of a pass of *lm* give other logits than the whole pass."""
    if not (ways_of(lm).cached and ways_of(lm).stairs):
        raise RequestError(
            f"rome: causal tracing runs parts of a pass, and {lm.name} gives other logits then; "
            "it can be edited, but not traced"
        )


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
        check_traceable(lm)
        start, end = subject
        whole = [*ids, *(answer or [])[:-1]]
        rows = [whole] * (1 + setup.samples)
        self.cache = DynamicCache()
        with ExitStack() as stack:
            stack.enter_context(_noise(lm, start, end, setup))
            blocks = [stack.enter_context(captured(lm.block(b))) for b in range(lm.n_layers)]
            parts = {
                part: [stack.enter_context(captured(m)) for m in modules_of(lm, part)]
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
        p = self._chance(logits)
        self.clean = float(p[0])
        self.disturbed = float(p[1:].mean())
        shape = (len(rows), len(whole), -1)
        self.entering = [blocks[0].input, *(box.output for box in blocks)]  # (1 + n, T, H) each
        self.parts = {p: [box.output.reshape(shape) for box in found] for p, found in parts.items()}
        self.prefixed = Prefixed(lm, rows[1:], self.cache, slice(1, None))

    def _chance(self, logits: Tensor) -> Tensor:
        """P(answer) of each row (B,), from the logits (B, A, V) that predict its A tokens."""
        ids = torch.tensor(self.answer, device=logits.device)
        p = logits.float().softmax(-1)
        return p.gather(-1, ids.expand(len(p), -1)[..., None])[..., 0].prod(-1)

    def restore(self, token: int, groups: Sequence[_Group]) -> dict[_Group, float]:
        """P(answer) for each of *groups*, with clean states restored at *token*."""
        width, L = self.setup.window, self.lm.n_layers
        ordered = sorted(groups, key=lambda group: group.start(L, width))
        kept = self.prefixed.after(token)
        found: dict[_Group, float] = {}
        at_once = max(1, self.setup.rows // self.setup.samples)
        for part in in_parts(lambda some: self._climb(token, kept, some), ordered, at_once):
            found |= part
        return found

    def _climb(self, token: int, kept: Kept, groups: Sequence[_Group]) -> dict[_Group, float]:
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
                    if put:
                        stack.enter_context(changed(module, _putting(put, alive[block])))
            first = len(self.ids) - 1 - token
            at = range(first, first + len(self.answer))
            logits = kept.repeat(len(starts)).logits(at)
        p = self._chance(logits).reshape(len(starts), n).mean(1)
        return dict(zip(groups, p[1:].tolist(), strict=True))

    def _joining(self, token: int, block: int, group: _Group) -> Tensor:
        """The input of a group's first block, (n, S, H)."""
        states = self.entering[block][1:, token:]
        if group.kind != STATE:
            return states
        clean = self.entering[block][:1, token : token + 1].expand(len(states), -1, -1)
        return torch.cat([clean, states[:, 1:]], dim=1)

    def _replacements(
        self, token: int, block: int, part: str, groups: Sequence[_Group]
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


def _noise(lm: Lm, start: int, end: int, setup: TraceSettings) -> Any:
    """Add the same noise in every run to the embeddings of the span, in all rows but the first."""
    draw = torch.Generator().manual_seed(setup.seed)
    noise = setup.noise * torch.randn(setup.samples, end - start, lm.hidden_size, generator=draw)

    def add(_: Tensor, out: Tensor) -> Tensor:
        disturbed = out.clone()
        disturbed[1:, start:end] += noise.to(out)[:, :, : out.shape[-1]]
        return disturbed

    return changed(lm.model.get_input_embeddings(), add)


def modules_of(lm: Lm, part: str) -> Iterator[nn.Module]:
    """The modules that write a part's output to the stream, by block."""
    for block in range(lm.n_layers):
        yield _mlp_of(lm, block) if part == MLP else lm.attention_out_module(block)


def _mlp_of(lm: Lm, block: int) -> nn.Module:
    """The module whose output is the MLP's; of experts, the whole MLP."""
    whole = lm.mlp_module(block) if lm.experts(block) is not None else None
    return whole or lm.mlp_out_module(block)
