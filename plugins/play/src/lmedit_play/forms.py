"""The form of a method's options, made from their descriptions."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, get_args

from lmedit.storage.json_files import dump_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

    from lmedit.options import Options
    from lmedit.registry import LoadedMethod


def form_of(loaded: LoadedMethod, chosen: Options, typed: Mapping[str, str]) -> str:
    """The presets and options of *loaded*. *chosen* are the values that count without the form.

    *typed* are the values that stand in the form. An empty field leaves the default. Options that
    only a probe uses are left out.
    """
    kind = loaded.method.options
    fields = [] if not kind.presets else [_preset(list(kind.presets), typed.get("preset", ""))]
    fields += [
        _field(name, info, getattr(chosen, name), typed.get(name, ""))
        for name, info in kind.model_fields.items()
        if name not in kind.probes
    ]
    return "".join(fields)


def _preset(names: list[str], typed: str) -> str:
    return _label_field(
        "preset", _select("preset", names, typed), "a set of values for the options"
    )


def _field(name: str, info: FieldInfo, value: Any, typed: str) -> str:
    choices = [str(each) for each in get_args(info.annotation) if isinstance(each, str)]
    if info.annotation is bool:
        choices = ["true", "false"]
    shown = escape(dump_json(value).strip('"') if value is not None else "none")
    own = f'id="option-{name}" name="{name}" aria-describedby="help-{name}"'
    if choices and len(choices) == len(get_args(info.annotation) or choices):
        field = _select(name, choices, typed, shown)
    else:
        field = f'<input {own} value="{escape(typed)}" placeholder="{shown}" autocomplete="off">'
    return _label_field(name, field, info.description or "")


def _select(name: str, choices: list[str], typed: str, shown: str = "none") -> str:
    options = "".join(
        f"<option{' selected' if each == typed else ''}>{escape(each)}</option>" for each in choices
    )
    own = f'id="option-{name}" name="{name}" aria-describedby="help-{name}"'
    return f'<select {own}><option value="">default: {shown}</option>{options}</select>'


def _label_field(name: str, field: str, told: str) -> str:
    return (
        f'<div class="field"><label for="option-{name}">{escape(name)}</label>{field}'
        f'<p class="small" id="help-{name}">{escape(told)}</p></div>'
    )
