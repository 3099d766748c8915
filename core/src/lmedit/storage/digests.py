"""Digests of tensors and files, for cache keys, patches and the check after revert."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor


def digest_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the given order; 64 hex digits."""
    total = hashlib.sha256()
    for name, tensor in named:
        data = tensor.detach().to("cpu").contiguous()
        total.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of the file at *path*; 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class KnownTensors:
    """Digests of named tensors. A digest is computed again only if the tensor was written to."""

    def __init__(self) -> None:
        """Start without digests."""
        self._read: dict[str, tuple[tuple[int, int], str]] = {}

    def digest(
        self,
        names: Iterable[str],
        written: Callable[[str], tuple[int, int]],
        values: Callable[[str], Tensor],
    ) -> str:
        """SHA-256 over the tensors *names*. ``written(name)`` changes when the values change."""
        total = hashlib.sha256()
        for name in sorted(names):
            now = written(name)
            if self._read.get(name, (None,))[0] != now:
                self._read[name] = now, digest_tensors([(name, values(name))])
            total.update(self._read[name][1].encode())
        return total.hexdigest()
