"""Model folders with edits. Stock transformers loads them, and every edit can be taken out.

Next to the model's own files are `lmedit-ledger.json` and `lmedit-edits/`. The latter holds the
patches, and the touched parameters as they were before the first edit. A folder is written beside
its place and exchanged for the old one in one step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.edits.ledger import SHORT, Ledger, LedgerEntry, check_fits, check_shapes, update_digest
from lmedit.edits.ledger_file import read_head
from lmedit.edits.patches import load_patch, save_patch
from lmedit.edits.written import check_written
from lmedit.errors import ArtifactError, LedgerError
from lmedit.models import LEDGER, TUNED_FILE, Lm, load_lm
from lmedit.storage.atomic import replacing_folder
from lmedit.storage.cache import key_of
from lmedit.storage.digests import digest_tensors
from lmedit.storage.json_files import SCHEMA, write_entries, write_json
from lmedit.storage.locks import folder_locked
from lmedit.storage.ours import check_writable
from lmedit.storage.tensors import BASE, load_tensors, save_tensors
from lmedit.types import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from lmedit.storage.tensors import Layout
    from lmedit.types import Update

EDITS, ORIGINALS = "lmedit-edits", "base.safetensors"


@dataclass(frozen=True)
class EditedModel:
    """A loaded model, the ledger of its edits, and its base."""

    lm: Lm
    ledger: Ledger
    base: Mapping[str, str]
    """Name and digest of the model without any edit."""
    gate: Mapping[str, Any] | None = None
    """What a gate measured on this model with these edits (`actions.gate`), for the ledger."""

    @property
    def head(self) -> dict[str, Any]:
        """The content of `lmedit-ledger.json`."""
        return {
            "schema": SCHEMA,
            "base": dict(self.base),
            "number_type": self.lm.dtype_name,
            "weights": self.lm.weights_digest(),
            **_edits_of(self.ledger),
            **({} if self.gate is None else {"gate": dict(self.gate)}),
        }


def _edits_of(ledger: Ledger) -> dict[str, Any]:
    """The part of `lmedit-ledger.json` about the edits."""
    return {
        "touched": [_place_of(site) for site in ledger.touched],
        "edits": [{**entry.facts, "id": entry.id} for entry in ledger.entries],
    }


def _place_of(site: Site) -> list[Any]:
    """*site* as JSON: its parameter, its layout, and its expert if it has one."""
    place: list[Any] = [site.parameter, site.transposed]
    return place if site.index is None else [*place, site.index]


def open_folder(name: str, **how: Any) -> EditedModel:
    """Load the model *name* (*how*: see `load_lm`) with its ledger, or with an empty ledger.

    Raises `ArtifactError` if the folder's edits are damaged or do not belong to its weights.
    """
    with folder_locked(Path(name), shared=True):
        return with_ledger(load_lm(name, **how), name)


def with_ledger(lm: Lm, name: str) -> EditedModel:
    """The loaded model *lm* of the folder *name* with its ledger; the errors of `open_folder`."""
    digest = lm.digest  # of the weights as they are loaded
    path = (lm.folder or Path(name)) / LEDGER
    if not path.is_file():
        return EditedModel(lm, Ledger(lm), {"name": lm.name, "digest": digest})
    head = read_head(path)
    if digest != head["weights"]:
        how_loaded = f"; it was written in {head['number_type']}, loaded in {lm.dtype_name}"
        raise ArtifactError(
            f"{name} does not hold the weights that its ledger describes"
            f"{how_loaded if head['number_type'] != lm.dtype_name else ''}; apply its patches to "
            "the base again"
        )
    ledger = _ledger(lm, path.parent / EDITS, head)
    found = {**head, "number_type": lm.dtype_name, **_edits_of(ledger)}
    if not ledger.entries:
        found["base"] = {**head["base"], "digest": digest}
    if key_of(**found) != key_of(**head):
        raise ArtifactError(
            f"{path} is damaged (it does not agree with its patches); apply the patches again"
        )
    return EditedModel(lm, ledger, head["base"])


def _ledger(lm: Lm, folder: Path, head: Mapping[str, Any]) -> Ledger:
    """The ledger of the edits in *head*, from the files in *folder*."""
    entries = []
    for edit in head["edits"]:
        path = folder / f"{edit['id']}.safetensors"
        update, facts = load_patch(path, lambda _, shapes: check_shapes(lm, shapes))
        if update_digest(update) != edit["id"]:
            raise ArtifactError(f"{path} holds another edit; apply the patches again")
        entries.append(LedgerEntry(edit["id"], update, facts))
    if not entries:
        return Ledger(lm)
    touched = {site for entry in entries for site in entry.update.deltas}
    path = folder / ORIGINALS

    def expect(facts: Any, layout: Layout) -> None:
        wanted = {site.name: tuple(lm.snapshot(site).shape) for site in touched}
        if facts != {"base": head["base"]} or {n: s for n, (_, s) in layout.items()} != wanted:
            raise ArtifactError(f"{path} is of other edits; apply the patches to the base again")

    tensors, _ = load_tensors(path, BASE, expect)
    return Ledger(lm, tuple(entries), {s: tensors[s.name].clone() for s in touched})


def read_log(folder: Path) -> dict[str, Any]:
    """The edits in the model of *folder*, read from its ledger alone, without the weights.

    Raises `LedgerError` if the folder has no ledger.
    """
    if not (folder / LEDGER).is_file():
        raise LedgerError(f"{folder} has no {LEDGER}: it holds no edit of lmedit")
    return read_head(folder / LEDGER)


def add_edits(model: EditedModel, edits: Sequence[tuple[Update, dict[str, Any]]]) -> EditedModel:
    """Add *edits* (from `read_patches`) to *model*, in their order."""
    for update, facts in edits:
        model.ledger.keep(update, facts)
    return model


def read_patches(
    model: EditedModel, patches: Sequence[Path]
) -> list[tuple[Update, dict[str, Any]]]:
    """Read the edits of *patches* and their facts.

    Raises `ArtifactError` if a patch has another base or does not fit. This is checked before its
    tensors are read.
    """
    found = []
    for path in patches:

        def check(facts: Any, shapes: Mapping[Site, tuple[int, int]], path: Path = path) -> None:
            _check_base(model, path, facts.get("model", {}), shapes)
            check_shapes(model.lm, shapes)
            touched = facts.get("model", {}).get("touched")
            if touched is not None and touched not in _digests(model, shapes):
                raise ArtifactError(
                    f"{path} does not match the parameters that it was made on; make it again"
                )

        update, facts = load_patch(path, check)
        check_fits(model.lm, update)
        found.append((update, facts))
    return found


def _check_base(
    model: EditedModel, path: Path, made_on: Mapping[str, Any], sites: Collection[Site]
) -> None:
    """Raise `ArtifactError` if the patch at *path* was *made_on* another model.

    The base is the whole model, because the effect of an edit depends on all of it. If only the
    touched matrices are the base's, the patch is refused too, and the message says so.
    """
    if made_on.get("digest") in {model.base["digest"], model.lm.digest}:
        return
    touched = ""
    if made_on.get("touched") in _digests(model, sites):
        touched = ", although the matrices that it changes are the same in both"
    raise ArtifactError(
        f"{path} was made on {made_on.get('name')} ({str(made_on.get('digest'))[:SHORT]}), "
        f"not on {model.base['name']} ({model.base['digest'][:SHORT]}){touched}; give its base "
        "as -m"
    )


def _digests(model: EditedModel, sites: Collection[Site]) -> set[str]:
    """Digests of the parameters of *sites*, without and with the edits in *model*."""
    names = {site.parameter for site in sites}
    if not names <= model.lm.parameters:
        return set()
    return {model.lm.weights_digest(sites), _digest_before(model, sites)}


def _digest_before(model: EditedModel, sites: Collection[Site]) -> str:
    """The digest of the parameters of *sites*, without the edits in *model*."""
    names = {site.parameter for site in sites}
    kept = {site: values for site, values in model.ledger.base.items() if site.parameter in names}
    if not kept:
        return model.lm.weights_digest(sites)
    before = {name: model.lm.snapshot(Site(name)) for name in sorted(names)}
    for site, values in kept.items():
        part = before[site.parameter]
        (part if site.index is None else part[site.index]).copy_(values)
    return digest_tensors(before.items())


def digest_in_base(model: EditedModel, update: Update) -> str:
    """The digest of the parameters that *update* touches, without the edits in *model*."""
    return _digest_before(model, update.deltas.keys())


def check_model_place(folder: Path) -> None:
    """Raise `ArtifactError` if a model cannot be written to *folder*; call it before long work."""
    if os.path.lexists(folder) and not os.path.isfile(folder / LEDGER):
        raise ArtifactError(f"{folder} exists and is not an edited model; choose another place")
    check_writable(folder)


def check_in_place(lm: Lm) -> None:
    """Raise `ArtifactError` if the matrices of *lm* are quantised, so that no folder holds edits.

    Call it before long work.
    """
    if (package := lm.packing) is not None:
        raise ArtifactError(
            f"{lm.name} is quantised by {package}, and its matrices cannot hold an edit; use "
            "lmedit export, which writes the edit as an adapter beside them"
        )


def write_folder(
    model: EditedModel, folder: Path, finish: Callable[[Path], object] = lambda _: None
) -> None:
    """Write *model* to *folder*, whole or not at all. The folder is new or was written by lmedit.

    *finish* receives the folder before it takes its place; it may add files. Raises
    `ArtifactError` if something else is there, if the files hold other weights, or if the model is
    quantised.
    """
    check_model_place(folder)
    check_in_place(model.lm)
    with replacing_folder(folder) as place:
        model.lm.model.save_pretrained(place)
        model.lm.tokenizer.save_pretrained(place)
        entries = model.ledger.entries
        for entry in entries:
            save_patch(place / EDITS / f"{entry.id}.safetensors", entry.update, entry.facts)
        if entries:
            originals = {site.name: t for site, t in model.ledger.base.items()}
            save_tensors(place / EDITS / ORIGINALS, BASE, originals, {"base": dict(model.base)})
        tuned = dict(model.lm.tuned)
        if model.lm.named_parts:  # else nobody could read the folder without naming them again
            tuned["model"] = {"options": dict(model.lm.named_parts)}
        if tuned:
            write_entries(place / TUNED_FILE, tuned)
        write_json(place / LEDGER, model.head)
        check_written(model.lm, place)
        finish(place)


def verify_folder(model: EditedModel) -> str:
    """Take all edits out of the weights, add them again, and return the base's digest.

    Raises `ArtifactError` if the first step does not give the base, or the second step does not
    give the present weights.
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


def missing_for(model: EditedModel, facts: Mapping[str, Any], more: Sequence[str]) -> list[str]:
    """The ids that an edit with these *facts* rests on, and that are not in *model* or *more*."""
    known = {*more, *(entry.id for entry in model.ledger.entries)}
    return [id_ for id_ in facts.get("carried", []) if id_ not in known]


def count_dependents(model: EditedModel, ids: Sequence[str]) -> int:
    """How many other edits in *model* were computed with one of *ids* in the model."""
    entries = [entry for entry in model.ledger.entries if entry.id not in ids]
    return sum(bool({*entry.facts.get("carried", [])} & {*ids}) for entry in entries)


def _one_of_many(model: EditedModel, name: str) -> None:
    """Raise `LedgerError` if *name* is one fact of a joint edit, by its subject or prompt."""
    for entry in model.ledger.entries:
        requests = entry.facts.get("requests", [])
        for request in requests:
            text = str(request.get("prompt")).replace("{}", str(request.get("subject")))
            if name and name in {request.get("subject"), text}:
                raise LedgerError(
                    f"{name!r} is one of {len(requests)} facts of edit {entry.id[:SHORT]}, which "
                    "is one change; revert the whole edit, then edit the others again with --facts"
                )


def find_edits(model: EditedModel, given: Sequence[str]) -> list[str]:
    """The ids of edits that are *given* by id, by the beginning of an id, or by patch file."""
    found = []
    for name in given:
        _one_of_many(model, name)
        path = Path(name)
        start = update_digest(load_patch(path)[0]) if os.path.isfile(path) else name
        found.append(model.ledger.find(start).id)
    return found
