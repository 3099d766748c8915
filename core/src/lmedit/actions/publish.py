"""Write edits to a folder that is ready for the hub, and push it if the user asks: `publish`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.actions.card import LICENCE, Card, card_text
from lmedit.edits.adapter_proof import export_adapter
from lmedit.edits.ledger import Ledger, update_digest
from lmedit.edits.lora import CONFIG
from lmedit.edits.model_folders import EditedModel, add_edits, check_in_place, write_folder
from lmedit.errors import ArtifactError, ModelError
from lmedit.metrics.weights import survival
from lmedit.models.gguf_header import read_header
from lmedit.models.installed_worlds import WORLDS, worlds
from lmedit.models.load import is_gguf
from lmedit.models.rounding import LEAST_KEPT
from lmedit.models.sources import MODELS
from lmedit.storage.json_files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmedit.models import Lm
    from lmedit.types import Update

    Edits = Sequence[tuple[Update, Mapping[str, Any]]]

README = "README.md"


def publish_adapter(
    opened: EditedModel,
    edits: Edits,
    out: Path,
    *,
    base_id: str | None = None,
    licence: str | None = None,
    rank: int | None = None,
) -> Card:
    """Write *edits* of the model *opened* to *out* as an adapter of peft with a card.

    *base_id* is the id of the base at the hub, *licence* that of the base. *rank* cuts dense
    changes. Raises `ArtifactError` as `export_adapter` does, and if *opened* holds edits.
    """
    if opened.ledger.entries:
        raise ArtifactError(
            f"{opened.lm.name} holds edits, and an adapter belongs to its base; give the base as "
            "-m, or --as model"
        )
    card = _card("adapter", opened, edits, base_id, licence)
    name = card.base_id or card.base
    written: list[Card] = []

    def finish(place: Path, difference: float) -> None:
        config = read_json(place / CONFIG)
        write_json(place / CONFIG, {**config, "base_model_name_or_path": name})
        proof = {"rank": config["r"], "largest difference of logits in peft": difference}
        written.append(replace(card, proof=proof))
        (place / README).write_text(card_text(written[0]), encoding="utf-8")

    updates = [update for update, _ in edits]
    export_adapter(opened.lm, updates, out, {"edits": list(card.facts)}, rank, finish)
    return written[0]


def publish_model(
    opened: EditedModel,
    edits: Edits,
    out: Path,
    *,
    base_id: str | None = None,
    licence: str | None = None,
) -> Card:
    """Write the model *opened* with *edits* to *out* as a model folder with a card.

    Raises `ArtifactError` as `write_folder` does, and if rounding removes an edit.
    """
    check_in_place(opened.lm)
    kept = [min(survival(opened.lm, update).values(), default=1.0) for update, _ in edits]
    if min(kept) < LEAST_KEPT:
        raise ArtifactError(
            f"only {100 * min(kept):.0f} % of an edit survives rounding to {opened.lm.dtype_name}; "
            "give --as adapter, which keeps all of it"
        )
    add_edits(opened, [(update, dict(facts)) for update, facts in edits])
    entries = [(entry.update, entry.facts) for entry in opened.ledger.entries]
    card = _card("model", opened, entries, base_id, licence)
    shared = [
        replace(entry, facts={name: v for name, v in facts.items() if name != "id"})
        for entry, facts in zip(opened.ledger.entries, card.facts, strict=True)
    ]
    ledger = Ledger(opened.lm, tuple(shared), opened.ledger.base)
    model = EditedModel(opened.lm, ledger, {**opened.base, "name": card.base_id or card.base})
    least = "smallest share of an edit that rounding keeps"
    card = replace(card, proof={"weights": model.head["weights"], least: min(kept)})
    write_folder(
        model,
        out,
        lambda place: (place / README).write_text(card_text(card), encoding="utf-8"),
    )
    return card


def _card(
    kind: str, opened: EditedModel, edits: Edits, base_id: str | None, licence: str | None
) -> Card:
    """The card of *edits*, whose facts name no place of this machine."""
    base = shared_name(opened.base["name"])
    facts = [
        {**shared_facts(told, base_id or base), "id": update_digest(update)}
        for update, told in edits
    ]
    known = licence or licence_of(opened.lm)
    return Card(kind, base, base_id, opened.base["digest"], known, facts, {})


def shared_name(name: str) -> str:
    """The model's *name*, without the folders of this machine."""
    return Path(name).name if os.path.exists(name) or name.count(os.sep) > 1 else name


REQUESTS = frozenset({"request", "requests"})
"""Facts that are texts for the model, not places."""


def shared_facts(facts: Mapping[str, Any], base: str) -> dict[str, Any]:
    """*facts* of a patch with *base* as the model's name, and names of files for whole paths."""
    found = {n: v if n in REQUESTS else _without_paths(v) for n, v in facts.items()}
    if isinstance(found.get("model"), dict):
        found["model"] = {**found["model"], "name": base}
    return found


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"(?<![\w.:/])~?(?:/[^\s/:]+)+/([^\s/:]+)", r"\1", value)
    return value


def licence_of(lm: Lm) -> str | None:
    """The licence of the model *lm* as its source tells it, in lower case; None if unknown.

    It is that of a pulled model, of the README or the GGUF file of the model, or of the
    distribution that holds it.
    """
    name = lm.base_name or lm.name
    ways: list[Callable[[], Any]] = [
        lambda: MODELS[name].licence,
        lambda: _in_readme(Path(lm.folder or "") / README),
        lambda: _in_gguf(lm.name),
        lambda: _of_world(name),
    ]
    for way in ways:
        try:
            found = way()
        except (KeyError, OSError, UnicodeDecodeError, ModelError):
            continue
        if found and LICENCE.fullmatch(str(found)):
            return str(found).lower()
    return None


def _in_readme(path: Path) -> str | None:
    front = path.read_text(encoding="utf-8").partition("---\n")[2].partition("\n---")[0]
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)['\"]?\s*$", front, re.MULTILINE)
    return None if found is None or found[1] in {"other", "unknown"} else found[1]


def _in_gguf(name: str) -> Any:
    return read_header(Path(name)).values.get("general.license") if is_gguf(name) else None


def _of_world(name: str) -> Any:
    """The licence of the distribution that holds the model of the world *name*."""
    world = worlds().get(name)
    if world is None or not isinstance(world.model, Path):
        return None
    (point,) = entry_points(group=WORLDS, name=name) or [None]
    if point is None or point.dist is None:
        return None
    told = point.dist.metadata.json
    return told.get("license_expression")


def check_login() -> str:
    """The user's own token for the hub. Raises `ArtifactError` if there is none."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise ArtifactError("--push needs your login at the hub; run: hf auth login")
    return token


def push_folder(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload *folder* to the model repository *repo* of the hub; return the address.

    A new repository is private, unless *public*. Raises `ArtifactError` if the hub refuses.
    """
    from huggingface_hub import HfApi

    token = check_login()
    hub = HfApi(token=token)
    try:
        made = hub.create_repo(repo, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            ignore_patterns=[".lmedit-*"],
            commit_message="Edits written by lmedit",
        )
    except Exception as error:  # the hub's library raises errors of several libraries
        lines = str(error).replace(token, "...").strip().splitlines() or [type(error).__name__]
        raise ArtifactError(
            f"cannot push to {repo} ({lines[0][:160]}); {folder} is written, push it again"
        ) from error
    return str(made)
