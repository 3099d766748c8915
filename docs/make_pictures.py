"""Make the docs' pictures with lmedit's own commands: `python docs/make_pictures.py [NAME...]`.

Without names it makes all pictures; `smollm2-traces.svg` takes a quarter of an hour. The comparison
is stored in `runs/pictures`, and a stopped one continues.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lmedit import Bars, Comparison
from lmedit.charts.files import draw
from lmedit.hyper.training import curves
from lmedit.storage.tensors import PREPARED, read_facts

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path(__file__).with_name("pictures")
RUN, BATCH_RUN = ROOT / "runs" / "pictures", ROOT / "runs" / "pictures-batch"
PYTHON = (sys.executable,)
LMEDIT = ("-c", "from lmedit.cli import main; main()")
FACT = ("--prompt", "{} is in the city of", "--subject", "The Eiffel Tower", "--target", "Rome")
COMPARISON = ("compare", "--cases", "demo", "-m", "demo", "--limit", "100", "--run", str(RUN))
BATCH = (
    *("compare", "ultraedit", "memit", "--cases", "demo", "-m", "demo", "--limit", "50"),
    *("--regime", "batch", "--sizes", "50", "--run", str(BATCH_RUN)),
)
COMMANDS = {
    "rome-trace.svg": ("locate", "rome", "--probe", *FACT, "--plot"),
    "kn-neurons.svg": ("locate", "kn", "--probe", *FACT, "--plot"),
    "smollm2-traces.svg": (
        *("locate", "rome", "-m", "smollm2", "--facts", "smollm2", "--limit", "50"),
        *("--compute", "auto", "-o", "trace_samples", "3", "--plot"),
    ),
}
"""Pictures that one command draws; the path of the file is its last argument."""
SCORES = {"scores.svg": (), "ft-scores.svg": ("base", "ft", "ft-l")}
"""Pictures of the comparison's scores, with their methods; an empty tuple: all methods."""
TOGETHER = "ultraedit-scores.svg"
"""The picture of the scores of 50 facts in one change."""
TRAININGS = {
    "demo-mend.svg": "demo/src/lmedit_demo/model/lmedit-prepared/mend.safetensors",
    "demo-ke.svg": "demo/src/lmedit_demo/model/lmedit-prepared/ke.safetensors",
    "smollm2-mend.svg": "smollm2/src/lmedit_smollm2/lmedit-prepared/mend.safetensors",
    "smollm2-ke.svg": "smollm2/src/lmedit_smollm2/lmedit-prepared/ke.safetensors",
}
"""Training curves of the editors that ship with the worlds, and the editors' files in `worlds/`."""


SCREENSHOTS = ("play.png", "play-both.png")
"""Screenshots of the playground; the test of the whole trip makes both, in a headless Chromium."""
TRIP = ("-m", "pytest", "-q", "plugins/play/tests/test_page.py", "-k", "whole_trip")


def python(*arguments: str, **variables: str) -> None:
    """Run Python with *arguments* in the repository, with more environment *variables*."""
    known = {**os.environ, **variables}
    subprocess.run([*PYTHON, *arguments], cwd=ROOT, check=True, timeout=3600, env=known)  # noqa: S603


def scores(title: str, run: Path, methods: tuple[str, ...] = ()) -> Bars:
    """ES, PS and NS of *methods* in *run* as bars; an empty tuple: all methods."""
    rows = [row for row in Comparison.read(run).rows if not methods or row["method"] in methods]
    return Bars(
        title,
        "method",
        "%",
        tuple(row["method"] for row in rows),
        {
            name: tuple(row[key] for row in rows)
            for key, name in (
                ("ES", "ES: the new answer wins"),
                ("PS", "PS: after paraphrases too"),
                ("NS", "NS: neighbours stay"),
            )
        },
    )


def make(name: str) -> None:
    """Make the picture *name*."""
    if name in COMMANDS:
        python(*LMEDIT, *COMMANDS[name], str(PICTURES / name))
    elif name in SCORES:
        python(*LMEDIT, *COMPARISON)
        title = "100 facts edited in the embedded model"
        draw([scores(title, RUN, SCORES[name])], PICTURES / name)
    elif name == TOGETHER:
        python(*LMEDIT, *BATCH)
        draw([scores("50 facts in one change of the embedded model", BATCH_RUN)], PICTURES / name)
    elif name in SCREENSHOTS:
        python(*TRIP, LMEDIT_PLAY_PICTURES=str(PICTURES))
    else:
        facts = read_facts(ROOT / "worlds" / TRAININGS[name], PREPARED)["facts"]
        draw(curves(facts["curve"]), PICTURES / name)


if __name__ == "__main__":
    for each in sys.argv[1:] or [*COMMANDS, *SCORES, TOGETHER, *TRAININGS, SCREENSHOTS[0]]:
        make(each)
