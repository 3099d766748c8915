"""A training in progress, and how it survives an interruption."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lmedit.hyper.network import Hypernetwork
    from lmedit.storage.tensors import Checkpoint


@dataclass
class TrainingState:
    """The state of a training, as a checkpoint stores it."""

    network: Hypernetwork
    optimiser: torch.optim.Adam
    step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = math.inf
    waited: int = 0
    skipped: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the state by name."""
        found = {f"now.{name}": t for name, t in self.network.state_dict().items()}
        found |= {f"best.{name}": t for name, t in self.best.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            found |= {f"adam.{number}.{name}": t for name, t in state.items()}
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Store the state in *checkpoint*."""
        names = ("step", "best_loss", "waited", "skipped", "curve")
        checkpoint.save(self.tensors(), {name: getattr(self, name) for name in names})

    def load(self, checkpoint: Checkpoint) -> bool:
        """Load the state from *checkpoint*; return False if it has none."""
        found = checkpoint.load()
        if found is None:
            return False
        tensors, facts = found
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["now"])
        self.best = parts["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        for name, value in facts.items():
            setattr(self, name, value)
        return True
