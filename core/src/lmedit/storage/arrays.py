"""Read .npy and .npz files without trust: kinds and shapes are checked before the numbers."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class OtherShapeError(ValueError):
    """An array has another shape than expected; `shape` is the found one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """*shape* is the shape in the file."""
        super().__init__(f"an array has shape {shape}")
        self.shape = shape


BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile raises for a damaged archive."""
KINDS = "fiu"
"""Numpy's letters of floats and whole numbers."""
LONGEST_HEADER = 10_000
"""The longest header of an array in bytes."""


def read_npz(path: Path, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Iterator[Any]:
    """The arrays *names* of the .npz file *path*, each of the given shape; None if one is missing.

    Raises `OSError` or `ValueError` before it reads an array of another shape or kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name, shape in zip(names, shapes, strict=True):
                if f"{name}.npy" not in archive.namelist():
                    yield None
                    continue
                with archive.open(f"{name}.npy") as file:
                    yield _read(file, shape, name)
    except BROKEN as error:
        raise ValueError(str(error)) from error


def read_npy(path: Path, dimensions: int) -> Any:
    """The array of the .npy file *path*; raises `OSError`, or `ValueError` for another kind."""
    with path.open("rb") as file:
        shape, order, kind = _header(file)
        need = math.prod(shape) * kind.itemsize
        if len(shape) != dimensions or need > path.stat().st_size:
            raise ValueError(f"it holds an array of shape {shape}")
        del order
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"it has version {version} of the format")
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy tells which other program wrote the header
            shape, order, kind = read(file, max_header_size=LONGEST_HEADER)
    except Exception as error:  # noqa: BLE001  (numpy runs parsers of Python, which raise anything)
        raise ValueError(f"its header cannot be read ({type(error).__name__})") from None
    if kind.kind not in KINDS:
        raise ValueError(f"it holds {kind}, not numbers")
    if any(size < 0 for size in shape):
        raise ValueError(f"it holds an array of shape {shape}")
    return shape, order, kind


def _read(file: IO[bytes], shape: tuple[int, ...], name: str) -> Any:
    found, order, kind = _header(file)
    if found != shape:
        raise OtherShapeError(found)
    need = math.prod(shape) * kind.itemsize
    data = file.read(need + 1)
    if len(data) != need:
        raise ValueError(f"{name} has {len(data)} bytes, but {need} were expected")
    flat = np.frombuffer(data, dtype=kind)
    return flat.reshape(shape, order="F" if order else "C")
