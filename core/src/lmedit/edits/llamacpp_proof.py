"""Compare a model in llama.cpp with ours: the probabilities of the next token after some texts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmedit.edits.adapter_proof import TEXTS
from lmedit.edits.ledger import applied
from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Update

    Answer = dict[int, float]

LEAST, TIMES = 0.005, 4.0
"""The edited models may differ by `LEAST`, or `TIMES` as much as the unedited models do."""
SECONDS = 600
"""The longest time of one run of llama.cpp."""
CHILD = Path(__file__).with_name("llamacpp_child.py")


@dataclass(frozen=True)
class Agreement:
    """Largest differences of a next-token probability between llama.cpp and ours."""

    base: float
    edited: float
    moved: float
    """How far the edit moves a probability at most, in ours."""

    @property
    def text(self) -> str:
        """The differences in words."""
        return (
            f"llama.cpp agrees: probabilities differ by {self.base:.2g} without the edit, by "
            f"{self.edited:.2g} with it; the edit moves them by {self.moved:.2g}"
        )


def runs_llamacpp() -> bool:
    """Whether llama.cpp (the package xllamacpp) is installed."""
    return find_spec("xllamacpp") is not None


class Proof:
    """The probabilities of *lm* without and with *update*, to compare llama.cpp with."""

    def __init__(self, lm: Lm, update: Update, texts: Sequence[str]) -> None:
        """*texts* are asked besides the texts of `adapter_proof`. *lm* stays as it is."""
        self.name = lm.name
        self.ids = [lm.encode(text) for text in dict.fromkeys([*texts, *TEXTS])]
        self.plain = lm.encode("a")[-1]
        self.base = [_next(lm, ids) for ids in self.ids]
        with applied(lm, update):
            self.edited = [_next(lm, ids) for ids in self.ids]
        both = zip(self.base, self.edited, strict=True)
        self.moved = max(float((one - other).abs().max()) for one, other in both)

    def check_adapter(self, model: Path, adapter: Path) -> Agreement:
        """Compare the GGUF *model* with and without the GGUF *adapter*.

        Raises `ArtifactError` if llama.cpp cannot run them, or gives another edited model.
        """
        base, edited = self._run(model, adapter, [0.0, 1.0])
        return self._agree(base, edited)

    def check_model(self, model: Path, edited: Path) -> Agreement:
        """Compare the GGUF *model* and the GGUF model *edited*. Raises as `check_adapter`."""
        (base,), (new,) = self._run(model, None, [0.0]), self._run(edited, None, [0.0])
        return self._agree(base, new)

    def _run(
        self, model: Path, adapter: Path | None, scales: Sequence[float]
    ) -> list[list[Answer]]:
        """What llama.cpp answers to each text, for each of *scales* of the *adapter*."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "answers.json"
            asked = {
                "model": str(model),
                "adapter": adapter and str(adapter),
                "prompts": self.ids,
                "scales": list(scales),
                "plain": self.plain,
                "threads": torch.get_num_threads(),
                "out": str(out),
            }
            try:
                done = subprocess.run(  # noqa: S603 - our own script
                    [sys.executable, "-P", str(CHILD)],
                    input=json.dumps(asked),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=SECONDS,
                )
            except subprocess.TimeoutExpired:
                raise ArtifactError(
                    f"llama.cpp does not answer in {SECONDS} s; nothing is kept"
                ) from None
            if done.returncode or not out.is_file():
                why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise ArtifactError(
                    f"llama.cpp cannot run this model ({why[:120]}); nothing is kept"
                )
            found = json.loads(out.read_text(encoding="utf-8"))
        return [[dict(answer) for answer in answers] for answers in found]

    def _agree(self, base: Sequence[Answer], edited: Sequence[Answer]) -> Agreement:
        found = Agreement(_apart(self.base, base), _apart(self.edited, edited), self.moved)
        allowed = max(LEAST, TIMES * found.base)
        if not found.edited <= allowed:
            raise ArtifactError(
                f"llama.cpp does not give the edited {self.name}: probabilities differ by "
                f"{found.edited:.2g}, more than {allowed:.2g}; nothing is kept, use lmedit apply"
            )
        return found


@torch.no_grad()
def _next(lm: Lm, ids: Sequence[int]) -> Tensor:
    """The probabilities (V,) of the token after *ids*, in float64 on the CPU."""
    return lm.logits(lm.batch([ids]))[0, -1].double().softmax(-1).cpu()


def _apart(ours: Sequence[Tensor], theirs: Sequence[Answer]) -> float:
    """The largest difference of a probability.

    A token that llama.cpp leaves out has at most the probability of the last one that it names.
    """
    found = 0.0
    for mine, answer in zip(ours, theirs, strict=True):
        named = torch.tensor([*answer])
        chances = torch.tensor([*answer.values()], dtype=torch.float64).exp()
        left_out = mine.clone()
        left_out[named] = 0
        missing = float(left_out.max() - chances.min())
        found = max(found, float((mine[named] - chances).abs().max()), missing)
    return found
