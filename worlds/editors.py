"""Train a world's MEND and KE editors and put them beside its records, in half precision.

    python worlds/editors.py demo            # into the model's folder
    python worlds/editors.py smollm2 mend    # into the folder of the world's package

Each editor is what `lmedit prepare METHOD -m WORLD` makes, with the world's tuned options. A
training that was stopped continues. `docs/make_pictures.py` draws the curves of the editors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmedit import Prepared
from lmedit.plan import Plan, set_up
from lmedit.preparation import SHIPPED, SUFFIX, save_prepared, write_bases

if TYPE_CHECKING:
    from lmedit import Lm


def halve(prepared: Prepared) -> dict[str, Any]:
    """The tensors; those in single precision become half precision."""
    return {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in prepared.tensors.items()
    }


def place(lm: Lm, method: str) -> Path:
    """The file that the world ships for *method*."""
    folder = lm.prepared or (lm.folder or Path()) / SHIPPED
    return folder / f"{method}{SUFFIX}"


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world")
    parser.add_argument("methods", nargs="*", default=["mend", "ke"])
    asked = parser.parse_args()
    for name in asked.methods:
        setup = set_up(Plan(methods=(name,), model=asked.world))
        (loaded,) = setup.methods
        prepared = setup.editor(loaded, train=True).prepared
        facts = {**prepared.facts, "corpus": "training.json"}
        path = place(setup.lm, name)
        save_prepared(path, Prepared(halve(prepared), facts), setup.lm.digest)
        write_bases(path.parent, {name: setup.options(loaded).prepared_on(setup.lm)})
        told = f"{facts['seconds']:.0f} s, validation {facts['validation']}"
        print(f"{name}: {path.stat().st_size / 1e6:.1f} MB, {told}", file=sys.stderr)


if __name__ == "__main__":
    main()
