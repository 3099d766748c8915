"""`Prepared`, `Update` and checkpoints on disk: safetensors with a checksum, written whole.

A file is written beside its place and renamed into it, so a reader finds the old file, the new
one or none. Loading verifies the format, the checksum and to which base model it belongs.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lmedit.errors import ArtifactError
from lmedit.models.digest import digest_tensors
from lmedit.parts import part_of
from lmedit.patches import Facts, shapes_of
from lmedit.types import DELTAS, Dense, LowRank, Prepared, Site, Update, first_complaint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.patches import Layout

CACHE_VARIABLE = "LMEDIT_CACHE"


def cache_folder() -> Path:
    """Where prepared statistics and editors are kept: LMEDIT_CACHE, or the user's cache."""
    from platformdirs import user_cache_path

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else user_cache_path("lmedit")


def key_of(**parts: Any) -> str:
    """A cache key: SHA-256 of all *parts* as canonical JSON; 64 hex digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside *path* for a file; renamed to *path* if the block ends well, else removed.

    Raises `ArtifactError` where the folder cannot be written.
    """
    with part_of(path) as part:
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes files that only their owner can read
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"cannot write {path}: {error}; nothing was kept") from error


def parse_json(text: str) -> Any:
    """The value that *text* says; raises `ValueError` also where it is too deep, or no text."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # halves of characters cannot be printed
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write *value* as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def save_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Write *tensors* with *facts* (JSON) as a safetensors file of *kind*, with a checksum."""
    # Copies, since safetensors refuses tensors that share memory.
    flat = {
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in sorted(tensors)
    }
    text = json.dumps(facts, sort_keys=True)
    metadata = {"kind": kind, "facts": text, "sha256": _checksum(kind, flat, text)}
    with written_whole(path) as part:
        save_file(flat, part, metadata=metadata)
        _order_header(part)


def _order_header(path: Path) -> None:
    """Put the metadata in order: safetensors writes it in any, and bytes should not vary."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def load_tensors(
    path: Path, kind: str, check: Callable[[Any, Layout], None] | None = None
) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote; raises `ArtifactError` for any other file.

    The tensors are views of the file: who keeps them longer than it makes copies. *check* is given
    the facts and what tensors there are, before one is read; it raises `ValueError` or
    `ArtifactError`.
    """
    if not os.path.isfile(path):  # which, unlike Path's, takes any name
        raise ArtifactError(f"no file {str(path)!r}; name a {kind} file written by lmedit")
    with _opened(path, kind) as (file, metadata):
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
    with _opened(path, kind) as (_, metadata):
        return parse_json(metadata.get("facts", ""))


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """The safetensors file *path* of *kind*, and its metadata; what is wrong in it is told."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != kind:
                what = f"{path} is not a {kind} file of lmedit; name the right file"
                raise ArtifactError(what)
            yield file, metadata
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); make it again") from error


def _checksum(kind: str, tensors: Mapping[str, Tensor], facts: str) -> str:
    return hashlib.sha256(f"{kind}|{facts}|{digest_tensors(tensors.items())}".encode()).hexdigest()


PREPARED, PATCH, CHECKPOINT = "prepared", "patch", "checkpoint"
STATISTICS, BASE = "statistics", "base"


def save_prepared(path: Path, prepared: Prepared, base: str) -> None:
    """Write *prepared*, bound to the base model's digest."""
    save_tensors(path, PREPARED, prepared.tensors, {"base": base, "facts": dict(prepared.facts)})


def load_prepared(path: Path, lm: Lm) -> Prepared:
    """Read a `Prepared`; refuses one that was made for another base model."""
    tensors, facts = load_tensors(path, PREPARED)
    if facts["base"] != lm.digest:
        raise ArtifactError(
            f"{path} was prepared for base {facts['facts'].get('base', '?')} "
            f"({facts['base'][:12]}), but {lm.name} is {lm.digest[:12]}; prepare again for this "
            "model"
        )
    return Prepared(tensors, facts["facts"])


@dataclass(frozen=True)
class Checkpoint:
    """Where long work keeps its state between interruptions; one file, replaced whole."""

    path: Path

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """The tensors and facts saved last, or None where the work starts anew."""
        return load_tensors(self.path, CHECKPOINT) if self.path.is_file() else None

    def save(self, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Replace the state by *tensors* and *facts* (JSON)."""
        save_tensors(self.path, CHECKPOINT, tensors, facts)

    def clear(self) -> None:
        """Forget the state, when the work is done."""
        self.path.unlink(missing_ok=True)


def save_patch(path: Path, update: Update, facts: Mapping[str, Any]) -> None:
    """Write *update* as a patch file with its provenance *facts* (JSON).

    Raises `ArtifactError` where the known ones among them are not what `lmedit.patches` says.
    """
    tensors: dict[str, Tensor] = {}
    sites = []
    for number, (site, delta) in enumerate(sorted(update.deltas.items())):
        kind = next(kind for kind, cls in DELTAS.items() if isinstance(delta, cls))
        sites.append({"parameter": site.parameter, "transposed": site.transposed, "delta": kind})
        tensors |= {f"{number}.{name}": tensor for name, tensor in delta.tensors().items()}
    told = {**facts, "sites": sites, "notes": dict(update.notes)}
    _checked(path, told)
    save_tensors(path, PATCH, tensors, told)


def load_patch(
    path: Path, check: Callable[[Mapping[str, Any], Mapping[Site, tuple[int, int]]], None] | None
    = None,
) -> tuple[Update, dict[str, Any]]:  # fmt: skip
    """Read a patch file: the update, and the facts it was saved with.

    *check* is given the facts and the shape (d_out, d_in) of every change before a tensor is read,
    and raises `ArtifactError`, as this does for a file that is damaged or no patch.
    """

    def expect(facts: Any, layout: Layout) -> None:
        shapes = shapes_of(_checked(path, facts), layout)
        if check:
            check(facts, shapes)

    tensors, facts = load_tensors(path, PATCH, expect)
    deltas: dict[Site, LowRank | Dense] = {}
    for number, site in enumerate(facts.pop("sites")):
        parts = {
            name.partition(".")[2]: tensor.clone()  # else a view of the file, and of its changes
            for name, tensor in tensors.items()
            if name.startswith(f"{number}.")
        }
        deltas[Site(site["parameter"], site["transposed"])] = DELTAS[site["delta"]](**parts)
    return Update(deltas, facts.pop("notes")), facts


def _checked(path: Path, facts: Any) -> Facts:
    try:
        return Facts.model_validate(facts)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_complaint(error)}; make the patch again") from None
