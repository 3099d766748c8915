"""Turn the user's fact into a `Request`. It is checked before any model is loaded."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lmedit.errors import RequestError
from lmedit.storage.json_files import parse_json
from lmedit.types import Request, request_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.models import Lm

    Tell = Callable[[str], object]

AUTO = "auto"
"""As --subject: lmedit proposes the subject, see `lmedit.actions.subjects`."""


def read_fact(flags: Mapping[str, str | None], text: str | None, tell: Tell) -> dict[str, Any]:
    """The values of a fact: those of the JSON object *text*, then the given *flags*, which win.

    Blanks at the ends of the values are removed, with a note to *tell*. A blank at the end of the
    prompt, or at the start of the target, is the joint of both. Raises `RequestError` if *text* is
    not a JSON object, if a value is missing or wrong, or if prompt and subject do not fit
    together. It needs no model.
    """
    if (true := flags.get("target_true")) is not None and not true.strip():
        raise RequestError("--target-true is blank; give the present answer, or leave it out")
    values = {} if text is None else _by_our_names(_of_json(text))
    values |= {name: value for name, value in flags.items() if value is not None}
    _check_names(values)
    missing = [name for name in ("prompt", "target_new") if values.get(name) is None]
    if missing:
        raise RequestError(
            f"the fact lacks {', '.join(missing)}; give --prompt and --target (and --subject "
            "if the method needs it), or --fact FILE"
        )
    typed = str(values["prompt"]).endswith(" ") or str(values["target_new"]).startswith(" ")
    values = {name: _trim(name, value, tell) for name, value in values.items()}
    if typed and values.get("join") in {None, "auto"}:
        values["join"] = "space"
    subject, prompt = values.get("subject"), values["prompt"]
    if subject == AUTO and isinstance(prompt, str) and "{}" in prompt:
        raise RequestError(
            "--subject auto finds the subject in a full prompt; write the prompt out without {}"
        )
    if isinstance(subject, str) and isinstance(prompt, str) and "{}" not in prompt and prompt:
        _check_the_rest(values)
        return values
    request_from(values)
    return values


def request_from_fact(lm: Lm, values: Mapping[str, Any], tell: Tell) -> Request:
    """The request of *values*, which come from `read_fact`.

    If the prompt is written out in full, the subject is searched in it, with a note to *tell*.
    Raises `SubjectNotFoundError` if the prompt does not contain it.
    """
    from lmedit.models import as_template
    from lmedit.models.places import place_subject

    values = dict(values)
    subject, prompt = values.get("subject"), values["prompt"]
    if subject is None or "{}" in prompt:
        return request_from(values)
    if subject == AUTO:
        from lmedit.actions.subjects import propose_subject

        values |= propose_subject(lm, prompt, values.get("target_true"), tell)
        return request_from(values)
    placed = place_subject(prompt, subject)
    if placed is None:
        values["prompt"] = as_template(lm.tokenizer, prompt, subject)
        return request_from(values)
    if placed.remark:
        tell(placed.remark)
    return request_from({**values, "prompt": placed.template, "subject": placed.subject})


def _of_json(text: str) -> dict[str, Any]:
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise RequestError("--fact is empty; give a JSON object, see lmedit edit --help")
    try:
        values = parse_json(text)
    except ValueError as error:
        raise RequestError(f"--fact is not JSON ({error}); see lmedit edit --help") from error
    if not isinstance(values, dict):
        raise RequestError("--fact must hold one JSON object; see lmedit edit --help")
    return values


SYNONYMS = {"target": "target_new", "question": "prompt", "answer": "target_new"}
"""Other names that a fact in JSON may use for its values."""


def _by_our_names(values: dict[str, Any]) -> dict[str, Any]:
    """*values* with our names in place of `SYNONYMS`. Raises `RequestError` if it has both."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        ours = SYNONYMS.get(name, name)
        if ours in found and found[ours] != value:
            names = " and ".join(n for n in values if SYNONYMS.get(n, n) == ours)
            raise RequestError(f"--fact: {names} mean the same and differ; remove one of them")
        found[ours] = value
    return found


def _check_names(values: Mapping[str, Any]) -> None:
    """Raise `RequestError` for a name that is not a value of a fact."""
    known = [*Request.model_fields, *SYNONYMS]
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise RequestError(f"--fact: {name!r} is not a value of a fact; {hint}")


def _trim(name: str, value: Any, tell: Tell) -> Any:
    """Remove blanks at the ends of *value*; a line end stays, and a tab that ends the prompt."""
    if not isinstance(value, str):
        return value
    bare = value.lstrip(" \t").rstrip(" ") if name == "prompt" else value.strip(" \t")
    if bare and bare != value:
        joins = value.endswith(" ") if name == "prompt" else value.startswith(" ")
        joint = " and a blank joins both" if joins and name in {"prompt", "target_new"} else ""
        tell(f"{name}: blanks at the ends are removed; the value is {bare!r}{joint}")
        return bare
    return value


def _check_the_rest(values: Mapping[str, Any]) -> None:
    """Check everything except the subject's place in the prompt."""
    request_from({**values, "prompt": "{}" + values["prompt"]})
