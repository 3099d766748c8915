"""The act of *Take it with you*: files of the edits that are on, and the lines that make them."""

from __future__ import annotations

import json
import shlex
import zipfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lmedit.edits.adapter_proof import export_adapter
from lmedit.edits.gguf_export import export_lora, find_base
from lmedit.edits.ledger import SHORT, applied
from lmedit.edits.recipes import read_recipe
from lmedit.errors import RequestError
from lmedit.options import parts_of
from lmedit_play import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmedit.plan import Plan
    from lmedit_play.sessions import KeptEdit, Session
    from lmedit_play.studio import Studio
    from lmedit_play.work import Job


def take(studio: Studio, session: Session, given: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Make a file of the edits that are on: a patch, an adapter, a GGUF adapter, or a recipe."""
    edits = [each for each in session.edits if each.on]
    if not edits:
        raise RequestError("no edit is on; edit a fact, or switch an edit on")
    makers = {"patch": _patches, "adapter": _adapter, "gguf-lora": _gguf, "recipe": _recipe}
    form = str(given.get("form"))
    if form not in makers:
        raise RequestError(f"there is no form {form!r}; choose one of {', '.join(makers)}")
    rank = str(given.get("rank") or "").strip()
    if rank and not (rank.isdigit() and 0 < int(rank) < 10**6):
        raise RequestError(f"the rank {rank!r} is no number of at least 1; correct it")
    path, told = makers[form](studio, session, edits, int(rank) if rank else None)
    if told:
        job.note(told)
    html = lines(studio, edits, form, rank)
    session.html["lines"] = html
    return {
        "html": {"lines": html},
        "file": session.offer(path),
        "name": path.name,
        "say": f"{path.name}: {path.stat().st_size:,} bytes",
    }


Made = tuple["Path", str]
"""A file, and a note on it; the note may be empty."""


def _patches(studio: Studio, session: Session, edits: Sequence[KeptEdit], rank: int | None) -> Made:
    del studio, rank
    if len(edits) == 1:
        return edits[0].patch, ""
    return _pack(session.place("patches.zip"), _names(edits)), "one patch file for each edit"


def _names(edits: Sequence[KeptEdit]) -> dict[str, Path]:
    """The patch files by names that differ."""
    return {f"{each.patch.stem}-{each.id[:SHORT]}.safetensors": each.patch for each in edits}


def _pack(path: Path, files: Mapping[str, Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for name, file in files.items():
            packed.write(file, name)
    return path


def _facts(edits: Sequence[KeptEdit]) -> dict[str, Any]:
    return {"edits": [dict(each.facts) for each in edits]}


def _adapter(studio: Studio, session: Session, edits: Sequence[KeptEdit], rank: int | None) -> Made:
    folder = session.place("adapter")
    updates = [each.update for each in edits]
    done = export_adapter(studio.lm, updates, folder, _facts(edits), rank)
    told = f"rank {done.adapter.rank}, largest difference of logits {done.difference:.2g}"
    files = {file.relative_to(folder.parent).as_posix(): file for file in folder.rglob("*")}
    return _pack(session.place("adapter.zip"), files), told


def _gguf(studio: Studio, session: Session, edits: Sequence[KeptEdit], rank: int | None) -> Made:
    base = find_base(None, studio.setup.plan.model)
    path = session.place("edit.gguf")
    updates = [each.update for each in edits]
    done = export_lora(studio.lm, updates, path, _facts(edits), base=base, rank=rank)
    told = done.agreement.text if done.agreement else "not tried in llama.cpp"
    return path, f"GGUF adapter of rank {done.rank}; {told}"


def _recipe(studio: Studio, session: Session, edits: Sequence[KeptEdit], rank: int | None) -> Made:
    """A recipe with its patches, in a zip; it is read again before it is given away."""
    del rank
    with ExitStack() as stack:
        for each in edits:
            stack.enter_context(applied(studio.lm, each.update))
        weights = studio.lm.weights_digest()
    names = _names(edits)
    text = [f'base = "{studio.lm.name}"', f'digest = "{studio.base}"', f'weights = "{weights}"']
    for each, name in zip(edits, names, strict=True):
        text += ["", "[[edit]]", f'patch = "{name}"', f'id = "{each.id}"']
    recipe = session.place("recipe.toml")
    recipe.write_text("\n".join([*text, ""]), encoding="utf-8")
    read_recipe(recipe)
    packed = _pack(session.place("recipe.zip"), {**names, "recipe.toml": recipe})
    return packed, "unpack it, then: lmedit apply recipe.toml -O edited"


def lines(studio: Studio, edits: Sequence[KeptEdit], form: str, rank: str) -> str:
    """The shell and the Python lines that make the same edits, and the same file."""
    made = [each for each in edits if each.result is not None]
    if not made:
        return "<p>The patches came from elsewhere, so no lines make them again.</p>"
    return pieces.code("The same in a shell", shell(studio, made, form, rank)) + pieces.code(
        "The same in Python", python(studio, made)
    )


def shell(studio: Studio, edits: Sequence[KeptEdit], form: str, rank: str) -> str:
    """The commands that compute *edits* and write the file of this *form*."""
    plan = studio.setup.plan
    number = ["--dtype", plan.dtype] if plan.dtype != "auto" else []
    model = shlex.join(["-m", plan.model, *number])
    told, names = [], []
    for each in edits:
        request, method = each.request, each.facts["method"]
        names.append(f"{method}-{each.id[:SHORT]}.safetensors")
        flags = ["--prompt", request["prompt"]]
        for flag, key in SAID.items():
            flags += [flag, request[key]] if request.get(key) else []
        options = {**parts_of(plan.options), **_options(studio, each)}
        for key, value in options.items():
            flags += ["-o", key, value if isinstance(value, str) else json.dumps(value)]
        force = " --force" if each.facts.get("forced") else ""
        files = [part for file in each.files for part in ("--plugin", file)]
        words = shlex.join([*flags, *_asking(plan), *files])
        told.append(f"lmedit edit {method} {model} {words}{force} -O {names[-1]}")
    kinds = {"adapter": "--format peft -O adapter", "gguf-lora": "--format gguf-lora -O edit.gguf"}
    if form in kinds:
        cut = f" --rank {rank}" if rank else ""
        told.append(f"lmedit export {' '.join(names)} {model} {kinds[form]}{cut}")
    elif form == "recipe":
        told.append(f"lmedit apply {' '.join(names)} {model} -O edited")
    return "\n".join(told)


SAID = {"--subject": "subject", "--target": "target_new", "--target-true": "target_true"}
"""The flags of a fact besides its prompt."""


def _options(studio: Studio, each: KeptEdit) -> dict[str, Any]:
    """The options of the edit *each* that the user gave: to `lmedit play`, then on the page."""
    name, seed = each.facts["method"], studio.setup.plan.seed
    given = {} if name in studio.alone else studio.options_given(name)  # else they are in `typed`
    return {**({} if seed is None else {"seed": seed}), **given, **each.typed}


def _asking(plan: Plan) -> list[str]:
    """The flags of *plan* on how the model is asked, and on what methods are prepared."""
    flags = ["--join", plan.join] if plan.join != "auto" else []
    flags += ["--chat"] if plan.chat else []
    flags += [] if plan.system is None else ["--system", plan.system]
    for name in plan.corpora:
        flags += ["--corpus", name]
    return flags


def python(studio: Studio, edits: Sequence[KeptEdit]) -> str:
    """The Python lines that compute *edits*; `updates` holds them."""
    plan = studio.setup.plan
    how = {"dtype": plan.dtype, "join": plan.join, "chat": plan.chat, "system": plan.system}
    usual = {"dtype": "auto", "join": "auto", "chat": False, "system": None}
    asked = {name: value for name, value in how.items() if value != usual[name]}
    if parts := parts_of(plan.options):
        asked["parts"] = parts
    told = ["from pathlib import Path", ""] if any(each.files for each in edits) else []
    told += ["import lmedit", "", f"lm = lmedit.load_lm({plan.model!r}{_as_arguments(asked)})"]
    told.append("updates = []")
    for each in edits:
        method = each.facts["method"]
        options = _as_arguments(_options(studio, each))
        told += [f"editor = lmedit.editor({_name_method(method, each.files)}, lm{options})"]
        wanted = ("prompt", "subject", "target_new", "target_true")
        values = ", ".join(f"{k}={each.request[k]!r}" for k in wanted if each.request.get(k))
        told.append(f"updates.append(editor.compute(lmedit.Request({values})))")
    first = edits[0].request
    text = str(first["prompt"]).replace("{}", str(first.get("subject") or "{}"))
    told += [
        "with lmedit.applied(lm, updates[0]):  # in here the model has the first edit",
        f"    print(lm.decode([int(lm.next_probabilities({text!r}).argmax())]))",
    ]
    return "\n".join(told)


def _name_method(method: str, files: Sequence[str]) -> str:
    """What `lmedit.editor` takes as the method."""
    return f"Path({files[0]!r})" if files else repr(method)


def _as_arguments(values: Mapping[str, Any]) -> str:
    """*values* as further named arguments of a call."""
    return "".join(f", {name}={value!r}" for name, value in values.items())
