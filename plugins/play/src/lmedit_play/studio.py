"""The acts of the page. Each calls the functions that the commands call, and returns HTML.

An act runs in the worker's thread and returns pieces of the page by the name of their place.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

from lmedit.actions.edit import edit_one
from lmedit.actions.edit_text import edit_text
from lmedit.actions.given_fact import read_fact, request_from_fact
from lmedit.cases import load_cases
from lmedit.edits.ledger import SHORT, update_digest
from lmedit.edits.model_folders import read_patches, with_ledger
from lmedit.errors import CasesError, RequestError, UnknownNameError
from lmedit.models import worlds
from lmedit.preparation import prepared_path, shipped_prepared
from lmedit_play import pieces
from lmedit_play.foreign import act_alone, ask_alone, edit_alone
from lmedit_play.forms import form_of
from lmedit_play.looking import Base, look_at_both
from lmedit_play.sessions import KeptEdit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmedit import Lm, Request
    from lmedit.options import Options
    from lmedit.pipeline import Editor
    from lmedit.plan import Plan, Setup
    from lmedit.registry import LoadedMethod
    from lmedit_play.ahead import Silent
    from lmedit_play.foreign import Asker
    from lmedit_play.sessions import Session
    from lmedit_play.work import Job

    Listener = Job | Silent | Asker
    Given = Mapping[str, Any]
    Found = dict[str, Any]

MOST_EDITORS = 4
"""How many editors stay in memory; a preparation can be as large as the matrices of its layers."""
EXAMPLES = 12
"""How many facts of the world the page offers."""
FACT = {"prompt": "prompt", "subject": "subject", "target": "target_new", "true": "target_true"}
"""The fields of the page, with the names of the fact's values."""


@dataclass
class Studio:
    """A loaded model with its methods, and what all tabs read of the unedited model."""

    setup: Setup
    left_out: Sequence[str] = ()
    """Why some methods are missing, a line each."""
    alone: Mapping[str, Plan] = field(default_factory=dict)
    """The methods whose acts run in a process of their own, with the plan of each."""

    def __post_init__(self) -> None:
        self.model = with_ledger(self.lm, self.setup.plan.model)
        self.base = self.lm.digest
        self.answers = Base(self.lm)
        self._editors: OrderedDict[str, Editor] = OrderedDict()
        self.forms: dict[str, Found] = {}
        """The forms of the methods in `alone`."""

    @property
    def lm(self) -> Lm:
        """The model."""
        return self.setup.lm

    def warm(self) -> None:
        """Measure what every edit compares with: it takes seconds, so do it while nobody asks."""
        self.answers.held  # noqa: B018  (the first use computes it)

    @property
    def names(self) -> list[str]:
        """The names of all methods that the page offers."""
        return [*(each.name for each in self.setup.methods), *self.alone]

    def method(self, name: str) -> LoadedMethod:
        """The method *name*, which is not alone. Raises `UnknownNameError`."""
        for each in self.setup.methods:
            if each.name == name:
                return each
        raise UnknownNameError("method", name, self.names)

    def options_given(self, name: str) -> dict[str, Any]:
        """The options of the method *name* that the plan gives to an edit."""
        loaded = self.method(name)
        probes = loaded.method.options.probes  # those of the trace, which an edit refuses
        found = self.setup.given_options(loaded)
        return {key: value for key, value in found.items() if key not in probes}

    def is_ready(self, loaded: LoadedMethod, options: Options) -> bool:
        """Whether the method has its preparation: stored, with the model, or it needs none."""
        if loaded.method.prepares_on is None or not options.needs_preparation:
            return True
        material = self.setup.material(loaded)
        stored = prepared_path(loaded, self.lm, options, material).is_file()
        return stored or bool(shipped_prepared(loaded, self.lm, options))

    def editor(self, name: str, typed: Mapping[str, str], job: Listener) -> Editor:
        """The editor of the method *name* with the *typed* options; it is prepared if needed.

        The last few stay, with their preparations.
        """
        loaded = self.method(name)
        options = self.setup.options(loaded, **typed)
        key = f"{name} {options.model_dump_json()}"
        if key not in self._editors:
            self._editors[key] = replace(self.setup, tell=job.note).editor(loaded, options)
            if len(self._editors) > MOST_EDITORS:
                self._editors.popitem(last=False)
        self._editors.move_to_end(key)
        return self._editors[key]

    def examples(self) -> list[Request]:
        """Facts of the model's world; none for a model without a world."""
        name = self.setup.plan.cases or self.lm.world
        if name not in worlds() and self.setup.plan.cases is None:
            return []
        try:
            good = load_cases(name).good
        except CasesError:
            return []
        step = max(1, len(good) // EXAMPLES)
        return [case.request for case in good[::step][:EXAMPLES]]

    def request(self, given: Given, job: Listener) -> Request:
        """The fact of the page, read and checked as that of the command line."""
        flags = {name: given.get(field) or None for field, name in FACT.items()}
        return request_from_fact(self.lm, read_fact(flags, None, job.note), job.note)


def options_of(given: Given) -> dict[str, str]:
    """The options of the method as they were typed; empty fields are left out."""
    typed = given.get("options", {})
    return {str(k): str(v).strip() for k, v in typed.items() if str(v).strip()}


def fact(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """The tokens of the prompt as chips. The subject may be proposed by the model."""
    request = studio.request(given, job)
    session.request = request
    if request.subject is None:
        ids = studio.lm.encode(request.text)
        start = end = 0
    else:
        ids, start, end = studio.lm.subject_span(request.prompt, request.subject)
    tokens = [studio.lm.decode([i]) for i in ids]
    filled = {field: getattr(request, name) or "" for field, name in FACT.items()}
    return {"html": {"chips": pieces.chips(tokens, start, end)}, "fact": filled}


def options(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """The form of a method's options, with the values that count for this model."""
    del session
    name, typed = str(given.get("method")), options_of(given)
    if name in studio.alone:
        if name not in studio.forms:
            studio.forms[name] = ask_alone(studio, name, act_alone, job, "options", dict(given))
        return studio.forms[name]
    loaded = studio.method(name)
    chosen = studio.setup.options(loaded)
    return {"html": {"options": form_of(loaded, chosen, typed)}}


def edit(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """Edit the fact as `lmedit edit` does, and keep the edit in the session's stack."""
    typed, name = options_of(given), str(given.get("method"))
    request = studio.request(given, job)
    patch, files = session.place(f"{name}.safetensors"), []
    if name in studio.alone:
        found = ask_alone(studio, name, edit_alone, job, dict(given), typed, str(patch))
        result, files, typed = found["result"], found["files"], {**found["given"], **typed}
    else:
        editor = studio.editor(name, typed, job)
        looking, force = studio.answers.looking(request), bool(given.get("force"))
        result = edit_one(editor, request, patch, force=force, looking=looking)
    session.request = request
    lines = edit_text(result).splitlines()
    if result["patch"] is None:
        told = f"{result['refused']}; it is not kept. Tick \u201ckeep it anyway\u201d to force it"
        return {"html": {"verdict": _verdict(lines)}, "refused": told}
    kept = replace(_read(studio, patch, result, typed), files=files)
    session.keep(kept)
    health = {name: result["after"][name] for name in ("perplexity", "KL")}
    if None not in health.values():
        studio.answers.seen({kept.id: kept.update}).health = health
    return _show(studio, session, {"verdict": _verdict(lines)})


def _verdict(lines: list[str]) -> str:
    """The lines of `lmedit edit` after the prompts, the verdict first."""
    front = "writes before: ", "writes after: ", "P(", "perplexity", "neighbours:", "other facts:"
    told = [line for line in lines if line.startswith((*front, "verdict: "))]
    verdict = [line for line in told if line.startswith("verdict: ")]
    others = [line for line in told if line not in verdict]
    computed = [line for line in lines if "computed the edit in" in line]
    head = "".join(f"<p><strong>{escape(line)}</strong></p>" for line in verdict)
    return f"{head}<ul>{pieces.notes([*others, *computed])}</ul>"


def _read(
    studio: Studio, patch: Path, result: Mapping[str, Any] | None, typed: Mapping[str, str]
) -> KeptEdit:
    """The edit in the file *patch*, checked as `lmedit apply` checks it."""
    ((update, facts),) = read_patches(studio.model, [patch])
    return KeptEdit(update_digest(update), update, facts, patch, result, typed)


def _show(studio: Studio, session: Session, more: Mapping[str, str] | None = None) -> Found:
    """The stack, and the answers before and after with the edits that are on."""
    prompts = studio.answers.prompts(session.request, session.texts)
    looks = look_at_both(studio.answers, prompts, session.on)
    session.html |= {
        **(more or {}),
        "stack": pieces.stack(session.edits, studio.base),
        "views": pieces.views(looks, _harm(studio, session) if session.edits else ()),
    }
    return {"html": dict(session.html)}


def _harm(studio: Studio, session: Session) -> list[str]:
    """What the edits that are on do to ordinary text: perplexity, and KL in nats per token."""
    text, held = studio.answers.held
    now = studio.answers.health(session.on)
    was, after = held.base["perplexity"], now["perplexity"]
    lines = [f"perplexity {was:.1f} \u2192 {after:.1f} on {text}"]
    if now.get("KL") is not None:
        lines.append(f"KL {now['KL']:.2g} nats per token from the base on {text}")
    return lines


def look(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """Ask the base and the edited model the user's own texts too."""
    if given.get("prompt"):
        session.request = studio.request(given, job)
    session.texts = [str(text) for text in given.get("texts", [])]
    return _show(studio, session)


def switch(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """Switch an edit on or off."""
    del job
    session.find(str(given.get("edit"))).on = bool(given.get("on"))
    return _show(studio, session)


def remove(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """Take an edit out of the stack."""
    del job
    session.edits.remove(session.find(str(given.get("edit"))))
    return _show(studio, session)


def verify(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """Switch all edits off, and compare the weights in memory with those that were loaded."""
    del given, job
    for each in session.edits:
        each.on = False
    now = studio.lm.weights_digest()
    if now != studio.base:
        raise RequestError(f"the weights are {now[:SHORT]}, not {studio.base[:SHORT]}; report this")
    told = f"all off: the base, bit for bit (SHA-256 of all weights {now[:SHORT]}, as loaded)"
    return _show(studio, session) | {"say": told}


def bring(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """Read a patch that the user brings, with the checks of the command line."""
    del job
    kept = _read(studio, given["file"], None, {})
    session.keep(kept)
    if kept.request.get("prompt") and session.request is None:
        session.request = read_request(kept.request)
    return _show(studio, session)


def read_request(values: Mapping[str, Any]) -> Request:
    """The fact of a patch. Raises `RequestError`."""
    from lmedit.types import request_from

    return request_from(values)


def state(studio: Studio, session: Session, given: Given, job: Job) -> Found:
    """The page as it was, for a tab that loads it again."""
    del given, job
    request = session.request
    filled = request and {field: getattr(request, name) or "" for field, name in FACT.items()}
    return {"html": dict(session.html), "fact": filled, "texts": session.texts}
