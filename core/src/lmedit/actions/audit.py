"""Audit a model folder against its base: what differs, and what the ledger explains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lmedit.edits.explained import (
    EXPLAINED,
    RETYPED,
    ROUNDED,
    SAME,
    UNEXPLAINED,
    LedgerOf,
    compare_tensor,
)
from lmedit.edits.ledger import SHORT
from lmedit.errors import ArtifactError, ModelError, UsageError
from lmedit.models import LEDGER, TUNED_FILE
from lmedit.models.load import find_place, outline
from lmedit.models.stored import StoredWeights, match_names
from lmedit.storage.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


NOISE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Keys of a config that say how the file was written, not what the model is."""
TOKENIZER = ("vocabulary", "rules", "special tokens", "chat template")
OURS = (LEDGER, TUNED_FILE, ".lmedit-files")
WRITTEN = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
"""Files of a model that are compared by their content, or by the tensors in them."""


def audit_folder(folder: Path, base: str | None, *, download: bool = False) -> dict[str, Any]:
    """The object of `lmedit audit --json`: the differences between *folder* and *base*.

    *base* is a model's name as for -m; by default the one that the folder's ledger names. Raises
    `ModelError` if one of them cannot be read, and `ArtifactError` for a damaged ledger.
    """
    ledger, name, place = _base_of(folder, base, download=download)
    mine, theirs = StoredWeights.of(folder), StoredWeights.of(place)
    names = match_names(set(mine.files), set(theirs.files))
    if divided := set(ledger.edits_of) - set(mine.files):
        ledger.divide(sorted(divided), outline(str(folder)).model)
    found = [
        compare_tensor(each, names[each], mine, theirs, ledger)
        for each in tqdm(sorted(names), "tensors", disable=None, leave=False)
    ]
    added = sorted(set(mine.files) - set(names))
    removed = _without_tied(sorted(set(theirs.files) - set(names.values())), theirs, names)
    stray = sorted(set(ledger.edits_of) - set(mine.files))
    _check_originals(ledger, theirs, names)
    problems = [
        *ledger.problems,
        *(f"the ledger edits {each}, which is not here" for each in stray),
    ]
    config, tokenizer = compare_configs(folder, place), compare_tokenizers(folder, place)
    told = {
        "folder": str(folder),
        "base": name,
        "ledger": bool(ledger.head),
        "edits": [{"id": e["id"], **_fact_of(e)} for e in ledger.head.get("edits", [])],
        "counts": {
            state: sum(each.state == state for each in found)
            for state in (SAME, RETYPED, EXPLAINED, ROUNDED, UNEXPLAINED)
        },
        "tensors": [asdict(each) for each in found if each.state not in {SAME, RETYPED}],
        "added": added,
        "removed": removed,
        "config": config,
        "tokenizer": tokenizer,
        "files": _other_files(folder, place),
        "problems": problems,
    }
    return {**told, "unexplained": list_unexplained(told)}


def _base_of(folder: Path, base: str | None, *, download: bool) -> tuple[LedgerOf, str, Path]:
    """The ledger of *folder*, and the name and the folder of its base."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no model folder; give one")
    ledger = LedgerOf(folder)
    name = base or (ledger.head["base"]["name"] if ledger.head else None)
    if name is None:
        raise UsageError(f"{folder} has no {LEDGER} that names its base; give --base")
    place = folder_named(name, download=download)
    if place.resolve() == folder.resolve():
        raise UsageError(f"{folder} is the base itself; give another --base")
    return ledger, name, place


def list_unexplained(told: Mapping[str, Any]) -> list[str]:
    """A few words for each difference in *told* that no edit of the ledger explains."""
    return [
        *(each["name"] for each in told["tensors"] if each["state"] == UNEXPLAINED),
        *(f"added {name}" for name in told["added"]),
        *(f"removed {name}" for name in told["removed"]),
        *(f"config {key}" for key in told["config"]),
        *(f"tokenizer: {part}" for part in told["tokenizer"]),
        *told["problems"],
    ]


def folder_named(name: str, *, download: bool = False) -> Path:
    """The folder of the model *name*. Raises `ModelError` if it is not here."""
    place = find_place(name)
    if place.folder.is_dir():
        return place.folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                local_files_only=not download,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"],
            )
        )
    except Exception as error:
        raise ModelError(
            f"the base {name!r} is not here ({type(error).__name__}); give --base FOLDER, or add "
            "--download"
        ) from error


def _fact_of(edit: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": edit.get("method"), "request": edit.get("request") or None}


def _without_tied(removed: list[str], base: StoredWeights, names: Mapping[str, str]) -> list[str]:
    """*removed* without tensors that equal a kept one of their shape: transformers ties them."""
    left = []
    for name in removed:
        shape, kept = base.shape(name), [k for k in names.values() if k.endswith("weight")]
        alike = [k for k in kept if base.shape(k) == shape] if len(shape) == 2 else []
        if not any(torch.equal(base.tensor(name), base.tensor(k)) for k in alike):
            left.append(name)
    return left


def _check_originals(ledger: LedgerOf, base: StoredWeights, names: Mapping[str, str]) -> None:
    """Add a problem for each stored value that `lmedit revert` would restore wrongly."""
    for site, values in ledger.originals():
        parameter, _, index = site.removesuffix("]").partition("[")
        if parameter not in names:
            continue
        was = base.tensor(names[parameter])
        was = was[int(index)] if index else was
        if was.shape != values.shape or not torch.equal(was.to(values.dtype), values):
            ledger.problems.append(
                f"the ledger's original values of {site} are not those of the base; lmedit "
                "revert would restore them"
            )


def compare_configs(folder: Path, base: Path) -> dict[str, Any]:
    """The keys of the two configs that differ, with both values, without those of `NOISE`."""
    found: dict[str, Any] = {}
    for file in ("config.json", "generation_config.json"):
        mine, theirs = (_config_values(each, file) for each in (folder, base))
        if mine is None or theirs is None:
            continue
        for key in sorted((mine.keys() | theirs.keys()) - NOISE):
            if mine.get(key) != theirs.get(key):
                name = key if file == "config.json" else f"generation.{key}"
                found[name] = {"base": theirs.get(key), "folder": mine.get(key)}
    return found


def _config_values(folder: Path, file: str) -> dict[str, Any] | None:
    """The values of a config with transformers' defaults filled in; None without the file."""
    from transformers import AutoConfig, GenerationConfig

    if not (folder / file).is_file():
        return None
    try:
        if file == "config.json":
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return dict(config.to_dict())
        return dict(GenerationConfig.from_pretrained(folder).to_dict())
    except Exception:  # noqa: BLE001  (transformers cannot build it: the plain values are compared)
        try:
            raw: dict[str, Any] = read_json(folder / file)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / file} is damaged ({error}); get it again") from error
        return raw


def compare_tokenizers(folder: Path, base: Path) -> list[str]:
    """The parts of the two tokenizers that differ, in words (`TOKENIZER`)."""
    mine, theirs = _tokenizer_parts(folder), _tokenizer_parts(base)
    return [part for part in TOKENIZER if mine[part] != theirs[part]]


def _tokenizer_parts(folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {folder} cannot be read ({error}); get it again"
        ) from error
    rules = getattr(tokenizer, "backend_tokenizer", None)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {
        "vocabulary": tokenizer.get_vocab(),
        "rules": None if rules is None else rules.to_str(),
        "special tokens": special,
        "chat template": tokenizer.chat_template,
    }


def _other_files(folder: Path, base: Path) -> dict[str, list[str]]:
    """Files beside weights, config and tokenizer that only one of both folders has."""
    mine, theirs = (set(_names_in(each)) for each in (folder, base))
    return {"added": sorted(mine - theirs - {*OURS}), "removed": sorted(theirs - mine - {*OURS})}


def _names_in(folder: Path) -> Iterable[str]:
    for path in folder.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in WRITTEN):
            yield path.name


def audit_text(told: Mapping[str, Any]) -> str:
    """The audit as text for the terminal."""
    counts = told["counts"]
    whole = counts[SAME] + counts[RETYPED]
    lines = [f"{told['folder']} against {told['base']}: {whole} tensors have the same values"]
    if counts[RETYPED]:
        lines.append(f"{counts[RETYPED]} of them have another number type")
    facts = {edit["id"]: _fact_words(edit) for edit in told["edits"]}
    lines += [line for each in told["tensors"] for line in _tensor_lines(each, facts)]
    lines += [f"added tensor: {name}" for name in told["added"]]
    lines += [f"removed tensor: {name}" for name in told["removed"]]
    lines += [
        f"config: {key} is {_short(v['folder'])}, in the base {_short(v['base'])}"
        for key, v in told["config"].items()
    ]
    lines += [f"tokenizer: the {part} differ" for part in told["tokenizer"]]
    lines += [f"{kind} file: {n}" for kind, names in told["files"].items() for n in names]
    lines += [f"ledger: {problem}" for problem in told["problems"]]
    if not told["unexplained"]:
        what = "every difference is explained by the ledger" if told["tensors"] else "no difference"
        lines.append(f"audit: {what}")
    return "\n".join(lines)


def _tensor_lines(found: Mapping[str, Any], facts: Mapping[str, str]) -> list[str]:
    """The lines about one tensor that differs."""
    sides = " x ".join(map(str, found["shape"]))
    edits = [f"  edit {facts[id_]}" for id_ in found["edits"]]
    if found["state"] in {EXPLAINED, ROUNDED}:
        how = "to the bit" if found["state"] == EXPLAINED else "up to rounding"
        return [f"{found['name']}  {sides}: explained {how}", *edits]
    return [f"{found['name']}  {sides}: NOT explained{_why(found)}", *edits]


def _why(found: Mapping[str, Any]) -> str:
    """The reason, and the rank, the energy and the norm of the unexplained rest."""
    why = f"; {found['why']}" if found["why"] else ""
    rest = found["remainder"]
    if rest is None:
        return why
    of = "" if rest["index"] is None else f" of matrix {rest['index']}"
    share = rest["relative_norm"]
    size = "" if share is None else f" ({100 * share:.3g} % of the tensor's)"
    parts = [f"norm {rest['norm']:.4g}{size}"]
    if rest["rank"] is not None:
        shares = ", ".join(f"{100 * each:.2f}" for each in rest["energy"])
        energy = f", {shares} % of its energy in the first directions" if shares else ""
        parts.insert(0, f"rank {rest['rank']}{of}{energy}")
    beside = " beside the edits" if found["edits"] and not found["why"] else ""
    return f"{why}; a change{beside} of {', '.join(parts)}"


def _fact_words(edit: Mapping[str, Any]) -> str:
    request = edit["request"] or {}
    text = str(request.get("prompt", "")).replace("{}", str(request.get("subject") or "{}"))
    fact = f" {text} -> {request.get('target_new')}" if request else ""
    return f"{edit['id'][:SHORT]}  {edit['method']}:{fact}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_audit(told: Mapping[str, Any]) -> None:
    """Raise `ArtifactError` if *told* has a difference that no edit explains."""
    if names := told["unexplained"]:
        first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        what = f"{len(names)} difference(s) from {told['base']} are not explained by its ledger"
        raise ArtifactError(
            f"{told['folder']}: {what} ({first}); apply the patches to the base again"
        )
