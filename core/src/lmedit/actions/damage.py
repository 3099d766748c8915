"""Does an edit damage the model? Compare perplexity and KL on a few lines, before and after."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from lmedit.metrics.health import HeldOut
from lmedit.models import worlds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.models import Lm
    from lmedit.registry import LoadedMethod
    from lmedit.types import Request

LINES = 8
"""How many lines of a world's held-out text are read."""

PLAIN = (
    "The meeting starts at nine, and everybody should bring a notebook and a pen.",
    "She opened the window because the room was warm, then she went back to her desk.",
    "Water boils at a lower temperature in the mountains than it does at the sea.",
    "A good recipe needs fresh vegetables, a little salt, and some patience.",
    "In 1969 two people walked on the Moon while a third one stayed in orbit.",
    "The train to the coast was late again, so we read the newspaper on the platform.",
    "Many farmers in the valley grow wheat and corn, and some keep sheep.",
    "If the printer does not answer, switch it off, wait a minute, and switch it on again.",
)
"""Plain sentences without rare names, for models without held-out text."""


def sample_held_out(lm: Lm) -> tuple[str, HeldOut]:
    """A few lines with the predictions of the unedited *lm*, and a name for the lines.

    They are the first lines of a world's held-out text; for other models they are `PLAIN`.
    """
    world = worlds().get(lm.world)
    if world is None:
        return f"{len(PLAIN)} plain sentences", HeldOut(lm, PLAIN)
    with world.heldout.open(encoding="utf-8") as lines:
        few = list(islice((line for line in lines if line.strip()), LINES))
    return f"{len(few)} lines of {world.heldout.name}", HeldOut(lm, few)


def way_out(loaded: LoadedMethod, request: Request) -> str:
    """A remedy for an edit that damages the model."""
    ways: Sequence[str] = [
        *(["-o preset r-rome"] if "r-rome" in loaded.method.options.presets else []),
        *(["a prompt with words before the subject"] if request.prompt.startswith("{}") else []),
        "another layer (lmedit tune)",
    ]
    return f"try {', or '.join(ways)}"
