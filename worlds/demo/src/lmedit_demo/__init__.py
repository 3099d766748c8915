"""The embedded world: a small model, its facts as records, and its text; all offline."""

from pathlib import Path

from lmedit import World

_HERE = Path(__file__).parent

WORLD = World(
    model=_HERE / "model",
    cases=_HERE / "counterfact.json",
    text=_HERE / "text.txt",
    heldout=_HERE / "heldout.txt",
    training=_HERE / "training.json",
)
