"""The runs of a causal trace as whole passes, for models where a part of a pass gives other logits.

State-space models are such models: a state carries the text from token to token. Every restored
run is then a row of the whole text through all blocks. The numbers are the same; it takes longer.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lmedit.memory import in_parts
from lmedit.replay import resume
from lmedit.trace import captured, changed
from lmedit_rome.restoring import PARTS, STATE, chance, disturb, modules_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from lmedit import Lm
    from lmedit_rome.restoring import Group, TraceSettings

Put = list[tuple[int, int, "Tensor"]]
"""Outputs to put at one token: the rows [first, last) and their values."""


class WholeRuns:
    """One clean run and `samples` disturbed runs; each restored run is a whole pass."""

    def __init__(
        self,
        lm: Lm,
        ids: list[int],
        subject: tuple[int, int],
        setup: TraceSettings,
        answer: list[int] | None = None,
    ) -> None:
        """Run the prompt *ids* and *answer*; without it, the answer is the top token."""
        self.lm, self.setup, self.span = lm, setup, subject
        self.whole = [*ids, *(answer or [])[:-1]]
        self.first, self.length = len(ids) - 1, len(answer or [0])
        blocks = [lm.block(i) if lm.runs(i) else None for i in range(lm.n_layers)]
        self.modules = {STATE: blocks} | {part: modules_of(lm, part) for part in PARTS}
        with ExitStack() as stack:
            stack.enter_context(disturb(lm, subject, setup))
            boxes = {
                (kind, block): stack.enter_context(captured(module))
                for kind, modules in self.modules.items()
                for block, module in enumerate(modules)
                if module is not None
            }
            logits = self._logits(1 + setup.samples)
        self.answer = answer or [int(logits[0, -1].argmax())]
        p = chance(logits, self.answer)
        self.clean, self.disturbed = float(p[0]), float(p[1:].mean())
        rows = 1 + setup.samples
        self.outputs = {key: self._by_row(box.output, rows) for key, box in boxes.items()}

    def _logits(self, rows: int) -> Tensor:
        """The logits (rows, A, V) that predict the answer, of *rows* rows of the whole text."""
        kept = resume(self.lm, [self.whole] * rows, 0, [])
        return kept.logits(range(self.first, self.first + self.length))

    def _by_row(self, out: Tensor, rows: int) -> Tensor:
        """A view (rows, T, ...) of a module's output.

        Some models give (rows * T, H); some have several streams, (streams, rows, T, H).
        """
        T = len(self.whole)
        if out.shape[:2] == (rows, T):
            return out
        if out.shape[0] == rows * T:
            return out.reshape(rows, T, *out.shape[1:])
        return out.movedim(0, 2)

    def restore(self, token: int, groups: Sequence[Group]) -> dict[Group, float]:
        """P(answer) for each of *groups*, with clean states restored at *token*."""
        found: dict[Group, float] = {}
        at_once = max(1, self.setup.rows // (self.setup.samples * len(self.whole)))
        for part in in_parts(lambda some: self._run(token, some), list(groups), at_once):
            found |= part
        return found

    def _run(self, token: int, groups: Sequence[Group]) -> dict[Group, float]:
        """One pass over the rows of all *groups*."""
        n, rows = self.setup.samples, self.setup.samples * len(groups)
        with ExitStack() as stack:
            stack.enter_context(disturb(self.lm, self.span, self.setup, clean=0))
            for kind, modules in self.modules.items():
                for block, module in enumerate(modules):
                    if module is not None and (put := self._put(kind, block, token, groups)):
                        stack.enter_context(self._putting(module, put, token, rows))
            logits = self._logits(rows)
        p = chance(logits, self.answer).reshape(len(groups), n).mean(1)
        return dict(zip(groups, p.tolist(), strict=True))

    def _put(self, kind: str, block: int, token: int, groups: Sequence[Group]) -> Put:
        """What the groups put into the output of this part of *block*."""
        L, width, n = self.lm.n_layers, self.setup.window, self.setup.samples
        outputs = self.outputs[kind, block][:, token]
        put: Put = []
        for place, group in enumerate(groups):
            rows = place * n, (place + 1) * n
            if group.kind == kind and (
                block == group.layer if kind == STATE else block in group.window(L, width)
            ):
                put.append((*rows, outputs[:1]))
            elif group.severed == kind and block in group.window(L, width):
                put.append((*rows, outputs[1:]))
        return put

    def _putting(self, module: nn.Module, put: Put, token: int, rows: int) -> Any:
        """Put the values into the output of *module* at *token*."""

        def change(_: Tensor, out: Tensor) -> Tensor:
            new = out.clone()
            by_row = self._by_row(new, rows)
            for first, last, values in put:
                by_row[first:last, token] = values.to(new)
            return new

        return changed(module, change)
