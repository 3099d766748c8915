"""Model folders with edits in them: stock transformers loads them, and every edit can come out.

Beside the model's own files lie `lmedit-ledger.json`, the patches, and the touched parameters as
they were before the first edit (`lmedit-edits/`). A folder is written beside its place and
exchanged for the old one in one step.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.artifacts import (
    BASE,
    load_patch,
    load_tensors,
    save_patch,
    save_tensors,
    write_json,
)
from lmedit.errors import ArtifactError, LedgerError
from lmedit.ledger import SHORT, Entry, Ledger, check_fits, identity_of
from lmedit.models import Lm, load_lm
from lmedit.types import Site

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmedit.types import Update

LEDGER, EDITS, ORIGINALS = "lmedit-ledger.json", "lmedit-edits", "base.safetensors"
CURRENT, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux' renameat2."""


@dataclass(frozen=True)
class Edited:
    """A loaded model, the ledger of what is in it, and the base it was made from."""

    lm: Lm
    ledger: Ledger
    base: Mapping[str, str]
    """Name and digest of the model without any edit."""

    @property
    def head(self) -> dict[str, Any]:
        """What `lmedit-ledger.json` says."""
        return {
            "base": dict(self.base), "number_type": self.lm.dtype_name,
            "weights": self.lm.weights_digest(),
            "touched": [[site.parameter, site.transposed] for site in self.ledger.touched],
            "edits": [{"id": e.id, **e.facts} for e in self.ledger.entries],
        }  # fmt: skip


def opened(name: str, **how: Any) -> Edited:
    """The model *name* (`load_lm`'s *how*) with its ledger, an empty one where it has none.

    Raises `ArtifactError` where the folder's edits are damaged or are not those of its weights.
    """
    lm = load_lm(name, **how)
    digest = lm.digest  # of the weights as they were loaded
    path = (lm.folder or Path(name)) / LEDGER
    if not path.is_file():
        return Edited(lm, Ledger(lm), {"name": lm.name, "digest": digest})
    head = _read(path)
    entries = []
    for edit in head["edits"]:
        update, facts = load_patch(path.parent / EDITS / f"{edit['id']}.safetensors")
        entries.append(Entry(edit["id"], update, facts))
    tensors: dict[str, Any] = {}
    if entries:
        tensors, _ = load_tensors(path.parent / EDITS / ORIGINALS, BASE)
    base = {Site(name, transposed): tensors[name] for name, transposed in head["touched"]}
    if digest != head["weights"]:
        how_loaded = f"; it was written in {head['number_type']}, loaded in {lm.dtype_name}"
        raise ArtifactError(
            f"{name} does not hold the weights that its ledger describes"
            f"{how_loaded if head['number_type'] != lm.dtype_name else ''}; apply its patches to "
            "the base again"
        )
    return Edited(lm, Ledger(lm, tuple(entries), base), head["base"])


def _read(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        names = {"base", "number_type", "weights", "touched", "edits"}
        if not isinstance(head, dict) or not names <= head.keys():
            raise ValueError("keys are missing")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); apply the patches again") from error
    return head


def log(folder: Path) -> dict[str, Any]:
    """What is in the model of *folder*, from its ledger alone; the weights are not read.

    Raises `LedgerError` where it has none.
    """
    if not (folder / LEDGER).is_file():
        raise LedgerError(f"{folder} has no {LEDGER}: lmedit has edited nothing in it")
    return _read(folder / LEDGER)


def with_edits(model: Edited, edits: Sequence[tuple[Update, dict[str, Any]]]) -> Edited:
    """*model* with *edits* (`read_patches`) kept in it, in their order."""
    for update, facts in edits:
        model.ledger.keep(update, facts)
    return model


def read_patches(model: Edited, patches: Sequence[Path]) -> list[tuple[Update, dict[str, Any]]]:
    """The edits of *patches* and what is known of them.

    Raises `ArtifactError` for a patch of another base, or one that does not fit.
    """
    found = []
    for path in patches:
        update, facts = load_patch(path)
        made_on = facts.get("model", {})
        if made_on.get("digest") not in {model.base["digest"], model.lm.digest}:
            raise ArtifactError(
                f"{path} was made on {made_on.get('name')} ({str(made_on.get('digest'))[:SHORT]}), "
                f"not on {model.base['name']} ({model.base['digest'][:SHORT]}); name its base as -m"
            )
        check_fits(model.lm, update)
        found.append((update, facts))
    return found


def written(model: Edited, folder: Path) -> None:
    """Write *model* to *folder*, which is new, or one that lmedit wrote; whole or not at all.

    Raises `ArtifactError` where something else is there.
    """
    if folder.exists() and not (folder / LEDGER).is_file():
        raise ArtifactError(f"{folder} exists and is not an edited model; choose another place")
    with replacing_folder(folder) as place:
        model.lm.model.save_pretrained(place)
        model.lm.tokenizer.save_pretrained(place)
        entries = model.ledger.entries
        for entry in entries:
            save_patch(place / EDITS / f"{entry.id}.safetensors", entry.update, entry.facts)
        if entries:
            originals = {site.parameter: t for site, t in model.ledger.base.items()}
            save_tensors(place / EDITS / ORIGINALS, BASE, originals, {"base": dict(model.base)})
        write_json(place / LEDGER, model.head)


def verified(model: Edited) -> str:
    """The base's digest, after taking all edits out of a copy of the weights and adding them again.

    Raises `ArtifactError` where that does not give the base, or not today's weights again.
    """
    ledger, today = model.ledger, model.lm.weights_digest()
    entries = ledger.entries
    ledger.take_out(*(entry.id for entry in entries))
    found = model.lm.weights_digest()
    if found != model.base["digest"]:
        raise ArtifactError(
            f"without its edits {model.lm.name} is {found[:SHORT]}, not {model.base['name']} "
            f"({model.base['digest'][:SHORT]}); apply the patches to the base again"
        )
    for entry in entries:
        ledger.keep(entry.update, entry.facts)
    if model.lm.weights_digest() != today:
        raise ArtifactError(
            f"{model.lm.name} is not its base with these edits; apply the patches to the base again"
        )
    return found


def named(model: Edited, given: Sequence[str]) -> list[str]:
    """The ids of edits that are *given* by id, a beginning of it, or their patch file."""
    found = []
    for name in given:
        path = Path(name)
        start = identity_of(load_patch(path)[0]) if path.is_file() else name
        found.append(model.ledger.find(start).id)
    return found


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of *folder* if the block ends well, else is removed.

    What was there before is deleted: the caller has made sure that it was ours.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        part.mkdir()
    except OSError as error:
        what = f"cannot write {folder}: {error.strerror}; choose another place"
        raise ArtifactError(what) from error
    try:
        yield part
        try:
            part.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            _exchange(part, folder)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error}; nothing was kept") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change places: at once where the system can, else by two renames."""
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        names = os.fsencode(new), os.fsencode(old)
        if rename and rename(CURRENT, names[0], CURRENT, names[1], EXCHANGE) == 0:
            return
    aside = new.with_name(f"{new.name}.old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
