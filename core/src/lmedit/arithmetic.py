"""The option `compute`: the number type of products with frozen matrices."""

from __future__ import annotations

import platform
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from lmedit.errors import ArtifactError
from lmedit.options import Options
from lmedit.replay.products import Compute, faster_type, times_faster
from lmedit.storage.cache import cache_folder, key_of
from lmedit.storage.json_files import read_entries, write_entries
from lmedit.storage.locks import folder_locked

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.models import Lm

LEAST = 2.0
"""``auto`` takes bfloat16 where it is at least this many times faster."""


class ArithmeticOptions(Options):
    """Base class of options with `compute`; the method passes it to `lmedit.replay.products`."""

    bfloat16_shown: ClassVar[bool] = False
    """Whether measurements have shown that the method's scores stay the same in bfloat16.

    Without them ``auto`` is float32. docs/explanation/performance.md has those of our methods.
    """

    compute: Compute = Field(
        default="float32",
        description="Number type of products with frozen matrices. auto: bfloat16 if the device "
        "is at least twice as fast in it.",
    )

    def resolved(self, lm: Lm) -> Self:
        """Replace ``auto`` by the number type for the device of *lm*."""
        known = super().resolved(lm)
        if known.compute != "auto":
            return known
        compute = chosen_type(lm) if self.bfloat16_shown else "float32"
        return known.model_copy(update={"compute": compute})


def chosen_type(lm: Lm) -> Literal["float32", "bfloat16"]:
    """bfloat16 if the device of *lm* is at least `LEAST` times faster in it, else float32.

    A product with a matrix of the model's shape is measured once for each device and shape. The
    cache keeps the result, so every process on this machine chooses the same.
    """
    if faster_type(lm.device) == "float32":
        return "float32"
    rows, columns = lm.hidden_size, max(map(lm.mlp_width, lm.editable), default=lm.hidden_size)
    return "bfloat16" if _read_or_measure(lm.device, rows, columns) >= LEAST else "float32"


def _read_or_measure(device: torch.device, rows: int, columns: int) -> float:
    """`times_faster` from the cache; the first process on a machine measures it."""
    about = {
        "device": _name_of(device),
        "torch": torch.__version__,
        "rows": rows,
        "columns": columns,
    }
    folder = cache_folder() / "arithmetic"
    path = folder / f"{key_of(**about)[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _read(path)
    measured: float | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_locked(folder):
            with suppress(OSError, ValueError, KeyError, TypeError):
                return _read(path)
            measured = times_faster(device, rows, columns)
            write_entries(path, {**about, "times_faster": measured})
    except (OSError, ArtifactError):  # nothing can be written there
        pass
    return times_faster(device, rows, columns) if measured is None else measured


def _read(path: Path) -> float:
    entries: dict[str, Any] = read_entries(path)
    return float(entries["times_faster"])


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {platform.node()}"
