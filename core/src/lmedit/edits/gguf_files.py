"""Write and read GGUF files with edits: adapters, and models with changed matrices.

A GGUF adapter adds ``scale * alpha / r * B A`` to a matrix, as llama.cpp reads it. The tensors are
``NAME.lora_a`` for A (r, d_in) and ``NAME.lora_b`` for B (d_out, r). lmedit writes alpha = r.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmedit.errors import ArtifactError
from lmedit.models.gguf_header import STRING, read_header
from lmedit.storage.atomic import write_whole
from lmedit.storage.bars import byte_bar
from lmedit.storage.ours import GGUF_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from torch import Tensor

    from lmedit.models.gguf_header import Header, TensorEntry

FACTS = GGUF_KEY.decode()
"""The key under which lmedit stores the facts of the edits, as JSON."""
ALPHA = "adapter.lora.alpha"
A, B = ".lora_a", ".lora_b"
CHUNK = 1 << 22


@dataclass(frozen=True)
class BaseFile:
    """The GGUF file of a base, and its header, which is read once."""

    path: Path
    header: Header


@dataclass(frozen=True)
class Packed:
    """A matrix as a GGUF file stores it: its number type, its bytes, and the values they hold."""

    kind: str
    data: bytes
    values: Tensor


def pack_matrix(matrix: Tensor, kind: str) -> Packed:
    """*matrix* (d_out, d_in) in the number type *kind*.

    Raises `ArtifactError` if rows of this length cannot be stored so.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, dequantize, quantize

    values = matrix.float().cpu().numpy()
    number = GGMLQuantizationType[kind]
    try:
        with np.errstate(over="ignore"):
            stored = quantize(np.ascontiguousarray(values), number)
    except (QuantError, NotImplementedError, ValueError) as error:
        raise ArtifactError(
            f"{kind} cannot store rows of {values.shape[1]} numbers; give --type F16"
        ) from error
    back = torch.from_numpy(dequantize(stored, number).copy()).reshape(values.shape)
    if not bool(back.isfinite().all()):
        raise ArtifactError(f"the edited matrix is too large for {kind}; give --type F32")
    return Packed(kind, stored.tobytes(), back)


def read_tensor(file: Path, header: Header, tensor: TensorEntry) -> Tensor:
    """The values of *tensor* in float32, in its shape. Raises `ArtifactError`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
    blocks, rest = divmod(prod(tensor.shape), block)
    if not tensor.shape or 0 in tensor.shape or rest or blocks * size != tensor.size:
        raise ArtifactError(
            f"{tensor.name} of {file} has the shape {tensor.shape}, which {tensor.kind} cannot "
            "store; get the file again"
        )
    with file.open("rb") as opened:
        opened.seek(header.start + tensor.offset)
        data = np.frombuffer(opened.read(tensor.size), np.uint8)
    try:
        rows = data.reshape(-1, tensor.size * tensor.shape[-1] // prod(tensor.shape))
        values = dequantize(rows, GGMLQuantizationType[tensor.kind])
    except (NotImplementedError, ValueError) as error:
        raise ArtifactError(
            f"the package gguf cannot read {tensor.name} of {file} ({tensor.kind}); give a file "
            "of another number type"
        ) from error
    return torch.from_numpy(np.array(values, np.float32)).reshape(tensor.shape)


def write_lora(
    path: Path,
    architecture: str,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    facts: Mapping[str, Any],
    check: Callable[[Path], object],
) -> None:
    """Write an adapter to *path*: for each tensor's name B (d_out, r) and A (r, d_in), float32.

    All have one rank r. *check* receives the finished file before it takes its place.
    """
    from gguf import GGUFWriter

    rank = max(right.shape[0] for _, right in factors.values())
    with write_whole(path) as part:
        writer = GGUFWriter(part, architecture)
        writer.add_string(FACTS, json.dumps(facts))
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32(ALPHA, float(rank))
        for name, (left, right) in factors.items():
            missing = rank - right.shape[0]
            a = torch.nn.functional.pad(right, (0, 0, 0, missing))
            b = torch.nn.functional.pad(left, (0, missing))
            writer.add_tensor(f"{name}{A}", a.float().contiguous().numpy())
            writer.add_tensor(f"{name}{B}", b.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        read_header(part)
        check(part)


def write_model(
    path: Path,
    base: BaseFile,
    changed: Mapping[str, Packed],
    facts: Mapping[str, Any],
    check: Callable[[Path], object],
) -> None:
    """Write the model of the GGUF file *base* to *path* with the *changed* tensors, by name.

    All other tensors and all keys are copied byte for byte. *check* receives the finished file
    before it takes its place.
    """
    header = base.header
    with write_whole(path) as part, base.path.open("rb") as old, part.open("wb") as new:
        _write_keys(old, new, header, facts)
        _write_entries(new, header, changed)
        total = sum(tensor.size for tensor in header.tensors)
        with byte_bar(f"writing {path.name}", total) as bar:
            for tensor in header.tensors:
                _pad(new, header.alignment)
                if tensor.name in changed:
                    new.write(changed[tensor.name].data)
                else:
                    _copy(old, new, header.start + tensor.offset, tensor.size)
                bar.update(tensor.size)
        _pad(new, header.alignment)
        new.flush()
        read_header(part)
        check(part)


def _write_keys(old: BinaryIO, new: BinaryIO, header: Header, facts: Mapping[str, Any]) -> None:
    """Write the keys of *old*, and before them the *facts*, under a key that is free."""
    count, first, last = header.keys
    old.seek(0)
    new.write(old.read(first - struct.calcsize("<Q")))
    new.write(struct.pack("<Q", count + 1))
    key, number = FACTS, 1
    while key in header.values:
        number += 1
        key = f"{FACTS}.{number}"
    new.write(_text(key) + struct.pack("<I", STRING) + _text(json.dumps(facts)))
    _copy(old, new, first, last - first)


def _write_entries(new: BinaryIO, header: Header, changed: Mapping[str, Packed]) -> None:
    """Write one entry for each tensor, with its place in the new file."""
    from gguf import GGMLQuantizationType

    at, step = 0, header.alignment
    for tensor in header.tensors:
        packed = changed.get(tensor.name)
        kind = packed.kind if packed else tensor.kind
        entry = _text(tensor.name) + struct.pack("<I", len(tensor.shape))
        entry += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        new.write(entry + struct.pack("<IQ", GGMLQuantizationType[kind].value, at))
        size = len(packed.data) if packed else tensor.size
        at += -(-size // step) * step


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pad(file: BinaryIO, step: int) -> None:
    file.write(b"\0" * (-file.tell() % step))


def _copy(old: BinaryIO, new: BinaryIO, start: int, size: int) -> None:
    old.seek(start)
    while size > 0:
        data = old.read(min(size, CHUNK))
        if not data:
            raise ArtifactError(f"{old.name} became shorter while it was read; run again")
        new.write(data)
        size -= len(data)


def _scale(file: Path, alpha: Any, rank: int) -> float:
    """The factor of B A for the value *alpha* of the adapter in *file*; without one it is 1."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | None) or not rank:
        raise ArtifactError(f"{file} has rank {rank} and alpha {alpha!r:.40}; get the file again")
    scale = float(alpha or rank) / rank
    if not math.isfinite(scale):
        raise ArtifactError(f"{file} has an alpha that is not finite; get the file again")
    return scale


def read_lora(file: Path) -> tuple[str, dict[str, tuple[Tensor, Tensor]]]:
    """The architecture of the adapter in *file*, and B (d_out, r) and A (r, d_in) by tensor name.

    B has the factor alpha / r. Raises `ArtifactError` unless the file is a plain LoRA adapter of
    one rank whose numbers float32 holds exactly, and `ModelError` if it is damaged.
    """
    header = read_header(file)
    found = [header.values.get(f"{key}.type") for key in ("general", "adapter")]
    if found != ["adapter", "lora"]:
        raise ArtifactError(f"{file} is not a LoRA adapter; give the file of an adapter")
    by_name = {tensor.name: tensor for tensor in header.tensors}
    names = dict.fromkeys(name.removesuffix(A).removesuffix(B) for name in by_name)
    if by_name.keys() != {f"{name}{end}" for name in names for end in (A, B)} or not names:
        raise ArtifactError(f"{file} holds other tensors than pairs of LoRA; merge it elsewhere")
    for tensor in by_name.values():
        if tensor.kind not in {"F32", "F16", "BF16"} or len(tensor.shape) != 2:
            raise ArtifactError(
                f"{file} stores {tensor.name} as {tensor.kind}, which is not exact; convert the "
                "adapter to F32"
            )
    ranks = {by_name[f"{n}{A}"].shape[0] for n in names} | {
        by_name[f"{n}{B}"].shape[1] for n in names
    }
    if len(ranks) != 1:
        mixed = " and ".join(map(str, sorted(ranks)))
        raise ArtifactError(f"{file} mixes the ranks {mixed}; convert it with one rank")
    (rank,) = ranks
    scale = _scale(file, header.values.get(ALPHA), rank)
    return header.architecture, {
        name: (
            scale * read_tensor(file, header, by_name[f"{name}{B}"]),
            read_tensor(file, header, by_name[f"{name}{A}"]),
        )
        for name in names
    }
