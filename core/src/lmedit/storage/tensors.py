"""Tensors with facts on disk: safetensors files with a checksum, written whole; checkpoints too.

Loading checks the header before it reads a tensor, then the format and the checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lmedit.errors import ArtifactError
from lmedit.storage.atomic import write_result, write_whole
from lmedit.storage.digests import digest_tensors
from lmedit.storage.json_files import SCHEMA, check_schema, dump_json, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    Layout = Mapping[str, tuple[str, tuple[int, ...]]]
    """Tensors by name: the dtype as safetensors names it, and the shape."""


def save_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], facts: Any, *, result: bool = False
) -> None:
    """Write *tensors* with *facts* (JSON) as a safetensors file of *kind*, with a checksum.

    *result* tells that a command announces the file (`atomic.write_result`).
    """
    # Copies, because safetensors refuses tensors that share memory.
    flat = {
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in sorted(tensors)
    }
    text = dump_json(facts, indent=None, ascii_only=True, ordered=True)
    metadata = {"kind": kind, "facts": text, "sha256": _checksum(kind, flat, text)}
    metadata["schema"] = str(SCHEMA)
    with (write_result if result else write_whole)(path) as part:
        save_file(flat, part, metadata=metadata)
        _order_header(part)


def _order_header(path: Path) -> None:
    """Sort the metadata: safetensors writes it in any order, but the bytes should not vary."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def load_tensors(
    path: Path, kind: str, check: Callable[[Any, Layout], None] | None = None
) -> tuple[dict[str, Tensor], Any]:
    """Read a file of `save_tensors`; raises `ArtifactError` for any other file.

    The tensors are views of the file; copy them to keep them longer than the file. Before a tensor
    is read, *check* receives the facts and the layout. It raises `ValueError` or `ArtifactError`.
    """
    while True:
        seen = _identity(path)
        try:
            return _load_once(path, kind, check)
        except ArtifactError:
            # safetensors opens the file twice. Another process may replace it in between.
            if _identity(path) == seen:
                raise


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a replaced file from the one before; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _load_once(
    path: Path, kind: str, check: Callable[[Any, Layout], None] | None
) -> tuple[dict[str, Tensor], Any]:
    with _open_file(path, kind) as (file, metadata):
        facts = parse_json(metadata.get("facts", ""))
        if check:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            check(facts, {n: (v.get_dtype(), tuple(v.get_shape())) for n, v in views.items()})
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if metadata.get("sha256") != _checksum(kind, tensors, metadata["facts"]):
            raise ArtifactError(f"{path} fails its checksum; delete it and make it again")
    return tensors, facts


def read_facts(path: Path, kind: str) -> Any:
    """The facts of a file of *kind*, without its tensors; raises `ArtifactError`."""
    with _open_file(path, kind) as (_, metadata):
        return parse_json(metadata.get("facts", ""))


@contextmanager
def _open_file(path: Path, kind: str) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """Open the safetensors file *path* of *kind* with its metadata; raises `ArtifactError`."""
    if not os.path.isfile(path):  # unlike Path.is_file, it accepts any name
        raise ArtifactError(f"no file {str(path)!r}; name a {kind} file written by lmedit")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != kind:
                what = f"{path} is not a {kind} file of lmedit; name the right file"
                raise ArtifactError(what)
            number = metadata.get("schema")
            check_schema(None if number is None else parse_json(number))
            yield file, metadata
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); make it again") from error


def _checksum(kind: str, tensors: Mapping[str, Tensor], facts: str) -> str:
    return hashlib.sha256(f"{kind}|{facts}|{digest_tensors(tensors.items())}".encode()).hexdigest()


PREPARED, PATCH, CHECKPOINT = "prepared", "patch", "checkpoint"
STATISTICS, BASE = "statistics", "base"


@dataclass(frozen=True)
class Checkpoint:
    """The file of a long computation's state between interruptions; always replaced whole."""

    path: Path

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """The tensors and facts that were saved last; None if there are none."""
        return load_tensors(self.path, CHECKPOINT) if self.path.is_file() else None

    def save(self, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Replace the state with *tensors* and *facts* (JSON)."""
        save_tensors(self.path, CHECKPOINT, tensors, facts)

    def clear(self) -> None:
        """Delete the state when the work is done."""
        self.path.unlink(missing_ok=True)
