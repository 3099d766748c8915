"""A world of facts that a real pretrained model, SmolLM2-135M-Instruct, answers right."""

from pathlib import Path

from lmedit import World

_HERE = Path(__file__).parent

WORLD = World(
    model="smollm2",
    cases=_HERE / "counterfact.json",
    text=_HERE / "text.txt",
    heldout=_HERE / "heldout.txt",
    training=_HERE / "training.json",
    tuned=_HERE / "lmedit-tuned.json",
    prepared=_HERE / "lmedit-prepared",
)
