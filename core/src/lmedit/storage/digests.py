"""Digests of tensors: what a cache key, a patch and a revert check are made of."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


def digest_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order given; 64 hex digits."""
    total = hashlib.sha256()
    for name, tensor in named:
        data = tensor.detach().to("cpu").contiguous()
        total.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class KnownTensors:
    """Digests of named tensors, each taken once for as long as it is not written to."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._read: dict[str, tuple[tuple[int, int], str]] = {}

    def digest(
        self,
        names: Iterable[str],
        written: Callable[[str], tuple[int, int]],
        values: Callable[[str], Tensor],
    ) -> str:
        """SHA-256 over the tensors *names*; *written* says of one what changes with its values."""
        total = hashlib.sha256()
        for name in sorted(names):
            now = written(name)
            if self._read.get(name, (None,))[0] != now:
                self._read[name] = now, digest_tensors([(name, values(name))])
            total.update(self._read[name][1].encode())
        return total.hexdigest()
