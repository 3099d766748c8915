"""The device that a model is put on, by its name."""

from __future__ import annotations

import torch

from lmedit.errors import ModelError

SPREAD = "map"
"""The device name for all devices; accelerate fills them in turn, then memory and disk."""


def device_of(device: str) -> str:
    """The device with this name; auto: cuda, mps or cpu. Raises `ModelError`."""
    if device == SPREAD:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "auto":
        try:
            found = torch.zeros(1, device=device)
            if found.is_meta:
                raise RuntimeError("it holds no values")
            return str(found.device)
        except Exception as error:
            raise ModelError(f"no device {device!r} here; use cpu, or cuda or mps") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
