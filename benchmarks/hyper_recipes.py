"""MEND's and KE's default recipe against the published one: validation loss by seconds of training.

    python benchmarks/hyper_recipes.py --seconds 180

Both recipes minimise the same loss on the same examples of the embedded model's training cases, one
after the other, each for so many seconds (validation not counted). Prints a row for each validation
and when the default first had the lowest loss that the published recipe reached; writes
`benchmarks/results/hyper_recipes.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paired import report

from lmedit import Checkpoint, build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit.hyper import training
from lmedit.pipeline import call_prepare

if TYPE_CHECKING:
    from lmedit import Lm

RECIPES = {"default": {}, "published": {"preset": "published"}}
EVERY = {"default": 50, "published": 10}
"""Steps between validations: both are looked at every few seconds."""


class Timed(training._Trainer):
    """A training that notes when each validation came, and ends after some seconds."""

    budget: float
    points: list[dict[str, Any]]
    started: float | None = None
    validating = 0.0

    def validate(self) -> None:
        """Validate, and leave the clock as it was."""
        now = time.monotonic()
        self.started = self.started if self.started is not None else now
        seconds = now - self.started - self.validating
        super().validate()
        self.points.append({**self.run.curve[-1], "seconds": seconds})
        self.validating += time.monotonic() - now
        if seconds > self.budget:
            self.run.waited = self.options.patience


def curve(lm: Lm, method: str, recipe: str, seconds: float) -> list[dict[str, Any]]:
    """The validations of one training."""
    loaded = load(method)
    given = {"validate_every": EVERY[recipe], "patience": 10_000, **RECIPES[recipe]}
    options = build_options(loaded.method, given, lm)
    Timed.budget, Timed.points = seconds, []
    training._Trainer = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "state")
        call_prepare(loaded, lm, options, load_cases(str(lm.training)), checkpoint)
    return Timed.points


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=["mend", "ke"])
    parser.add_argument("--seconds", type=float, default=180)
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for method in flags.methods:
        lm = load_lm("demo")
        curves = {recipe: curve(lm, method, recipe, flags.seconds) for recipe in RECIPES}
        rows += [
            {"method": method, "recipe": recipe, **point}
            for recipe, points in curves.items()
            for point in points
        ]
        goal = min(curves["published"], key=lambda point: float(point["loss"]))
        first = next((p for p in curves["default"] if p["loss"] <= goal["loss"]), None)
        rows.append(
            {
                "method": method,
                "loss": goal["loss"],
                "published_seconds": goal["seconds"],
                "default_seconds": first["seconds"] if first else None,
            }
        )
    report("hyper_recipes", rows)


if __name__ == "__main__":
    main()
