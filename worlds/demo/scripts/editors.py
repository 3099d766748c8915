"""Train the demo's MEND and KE editors and write them into the model folder.

    python worlds/demo/scripts/editors.py

Each is what `lmedit prepare METHOD -m demo` makes, with the options of the model's
`lmedit-tuned.json`, rounded to half precision. A training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from lmedit import Prepared, build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit.charts.files import draw
from lmedit.hyper.training import curves
from lmedit.pipeline import prepare
from lmedit.preparation import SHIPPED, SUFFIX, save_prepared
from world import PACKAGE_DIR

PICTURES = Path(__file__).parents[3] / "docs" / "pictures"


def halved(prepared: Prepared) -> dict[str, Any]:
    """The tensors, those of single precision in half."""
    return {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in prepared.tensors.items()
    }


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=["mend", "ke"])
    for name in parser.parse_args().methods:
        lm = load_lm("demo")
        loaded = load(name)
        options = build_options(loaded.method, {}, lm)
        editor = prepare(loaded, lm, options, load_cases(str(lm.training)))
        facts = {**editor.prepared.facts, "corpus": "training.json"}
        path = PACKAGE_DIR / "model" / SHIPPED / f"{name}{SUFFIX}"
        save_prepared(path, Prepared(halved(editor.prepared), facts), lm.digest)
        draw(curves(facts["curve"]), PICTURES / f"demo-{name}.svg")
        told = f"{facts['seconds']:.0f} s, validation {facts['validation']}"
        print(f"{name}: {path.stat().st_size / 1e6:.1f} MB, {told}", file=sys.stderr)


if __name__ == "__main__":
    main()
