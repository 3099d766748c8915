"""Read the header of a GGUF file: architecture, number types, and the length of the whole file.

The layout is that of ggml's `docs/gguf.md`, versions 2 and 3: counts, keys with values, one entry
for each tensor, then the tensors. The reader of the package `gguf` makes an array for every token.
That takes seconds, and it does not report a truncated file.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from lmedit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""The format of `struct` for each number of a value type."""
DEPTH = 4
"""The deepest nesting of arrays; a deeper one is damage."""
ALIGNMENT = 32
"""The alignment in bytes of a file that names none."""
EXACT = ("F32", "F16", "BF16")
"""The number types that float32 represents exactly."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a GGUF file: its name, number type, shape (rows first), place and size."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    """Where its bytes begin, counted from `Header.start`."""
    size: int
    """Its number of bytes."""


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file."""

    architecture: str
    values: Mapping[str, Any]
    """The keys with one value. Keys with arrays are left out."""
    types: Mapping[str, int]
    """The number of tensors of each number type, by ggml's name of the type."""
    size: int
    """The length of the whole file in bytes, as the header implies it."""
    tensors: tuple[TensorEntry, ...] = ()
    """The tensors in the order of the file."""
    keys: tuple[int, int, int] = (0, 0, 0)
    """The number of keys; the bytes of the file at which the keys begin and end."""
    start: int = 0
    """The byte of the file at which the tensors begin."""

    @property
    def alignment(self) -> int:
        """Every tensor begins at a multiple of this number of bytes."""
        return whole_number(self.values, "general.alignment", ALIGNMENT)

    @property
    def stored_as(self) -> str:
        """The number types of the weights, the most frequent first. F32 is named only if alone."""
        rounded = {name: count for name, count in self.types.items() if name != "F32"}
        return " and ".join(sorted(rounded, key=lambda name: -rounded[name])) or "F32"

    @property
    def note(self) -> str:
        """One line: the number types that are read as float32, and the loss."""
        exact = set(self.types) <= set(EXACT)
        lost = "nothing is lost" if exact else "weights are as the file rounds them"
        return f"{self.stored_as} read as float32: {lost}"


def read_header(file: Path) -> Header:
    """Read the header of *file*. Raises `ModelError` if it is not a whole GGUF file of one part."""
    if file.exists() and not file.is_file():
        raise ModelError(f"{file} is not a file; give a GGUF file, or a model folder")
    try:
        with file.open("rb") as opened:
            if opened.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{file} is not a GGUF file; give one, or a model folder")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found, length = _Reader(file, data).header(), len(data)
        parts = whole_number(found.values, "split.count", 1)
    except OSError as error:
        what = error.strerror or error
        raise ModelError(f"cannot read {file}: {what}; give a GGUF file") from error
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        what = f"{file} is a damaged or truncated GGUF file ({type(error).__name__}: {error})"
        raise ModelError(f"{what}; get the file again") from error
    if length < found.size:
        what = f"{file} is truncated: {length} bytes where {found.size} were expected"
        raise ModelError(f"{what}; get the file again")
    if parts > 1:
        what = f"{file} is one of {parts} parts of a model"
        raise ModelError(f"{what}; merge them with llama-gguf-split --merge")
    return found


def whole_number(values: Mapping[str, Any], key: str, default: int) -> int:
    """The number of *key*, at least 1; raises `ValueError` if the value is something else."""
    found = values.get(key, default)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 1 << 32:
        raise ValueError(f"{key} is {found!r:.40}")
    return found


class _Reader:
    """Read values from *data* in order. A read beyond the end raises `struct.error`."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file = file
        self.data = data
        self.at = len(MAGIC)

    def header(self) -> Header:
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}")
        tensors, keys = self.number("Q"), self.number("Q")
        values: dict[str, Any] = {}
        first = self.at
        for _ in range(keys):
            key = self.text()
            kind = self.number("I")
            value = self.value(kind)
            if kind != ARRAY:
                values[key] = value
        last = self.at
        placed = tuple(self.tensor() for _ in range(tensors))
        types = Counter(tensor.kind for tensor in placed)
        end = max((tensor.offset + tensor.size for tensor in placed), default=0)
        step = whole_number(values, "general.alignment", ALIGNMENT)
        start = -(-self.at // step) * step
        return Header(
            str(values["general.architecture"]),
            values,
            dict(types),
            start + end,
            placed,
            (keys, first, last),
            start,
        )

    def number(self, form: str) -> Any:
        (found,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        end = self.number("Q") + self.at
        if end > len(self.data):
            raise struct.error("a string goes beyond the end")
        found = self.data[self.at : end]
        self.at = end
        return found.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(FORMATS[kind])
        inner, count = self.number("I"), self.number("Q")
        if depth > DEPTH:
            raise ValueError("arrays in arrays")
        if inner in FORMATS:
            self.at += count * struct.calcsize(f"<{FORMATS[inner]}")
            return None
        for _ in range(count):
            self.value(inner, depth + 1)
        return None

    def tensor(self) -> TensorEntry:
        """The next tensor's entry."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.text()
        shape = tuple(self.number("Q") for _ in range(self.number("I")))[::-1]
        number = self.number("I")
        if number not in {kind.value for kind in GGML_QUANT_SIZES}:
            raise ModelError(
                f"{self.file} holds numbers of a type ({number}) that the package gguf does not "
                "know; pip install --upgrade gguf, or get the file again"
            )
        kind = GGMLQuantizationType(number)
        block, bytes_each = GGML_QUANT_SIZES[kind]
        size = prod(shape) // block * bytes_each
        return TensorEntry(name, kind.name, shape, self.number("Q"), size)
