"""Shared by several commands: flags, and how flags become a plan and a fact."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.parameter_types import NUMBER, PLACE, NumberType
from lmedit.guards.hooks import EDIT_VARIABLE, PREPARE_VARIABLE
from lmedit.storage.escapes import for_json, for_terminal
from lmedit.storage.json_files import dump_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.models import Lm
    from lmedit.plan import Plan, Setup
    from lmedit.types import Request

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def flags(*decorators: Decorator) -> Decorator:
    """Combine several click options into one decorator; --help shows them in the given order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_flags = flags(
    click.option(
        "-m",
        "--model",
        default="demo",
        envvar="LMEDIT_MODEL",
        show_default=True,
        show_envvar=True,
        help="A world, a pulled model, FOLDER, FILE.gguf, or a hub id.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="cpu, cuda, mps, ...; map: spread the model over all devices (accelerate).",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "float32", "bfloat16", "float16", "float64"]),
        help="The model's number type; auto: that of the checkpoint.",
    ),
    click.option("--download", is_flag=True, help="Allow downloads from the hub."),
)

plugin_flag = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE.py",
    type=PLACE,
    help="Load a method from this file; repeatable.",
)

asking_flags = flags(
    click.option(
        "--join",
        type=click.Choice(["auto", "space", "none"]),
        default="auto",
        show_default=True,
        help="What stands between prompt and answer: a blank or nothing. auto: lmedit decides by "
        "the characters, or else by the model's probabilities.",
    ),
    click.option(
        "--chat", is_flag=True, help="Ask each prompt through the tokenizer's chat template."
    ),
    click.option("--system", metavar="TEXT", help="With --chat: the system prompt."),
)

method_flags = flags(
    click.option(
        "-o",
        "--option",
        "pairs",
        nargs=2,
        multiple=True,
        metavar="KEY VALUE",
        help="Set an option of the method. With several methods, write METHOD.KEY. "
        "`preset NAME` sets a preset; @FILE reads a file of lmedit tune.",
    ),
    plugin_flag,
    click.option(
        "--observe",
        "observers",
        multiple=True,
        metavar="NAME|FILE.py",
        help="Add an observer of the hooks (docs/reference/hooks.md); repeatable.",
    ),
    click.option(
        "--compute",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        help="Number type of products with frozen matrices, for methods that have this option. "
        "auto: bfloat16 if the device is twice as fast in it.  [default: float32]",
    ),
    click.option(
        "--edit-timeout",
        type=NumberType(0, 10**9, whole=False),
        envvar=EDIT_VARIABLE,
        expose_value=False,
        callback=lambda _, __, value: _limit(EDIT_VARIABLE, value),
        metavar="SECONDS",
        help="The longest time of one hook of an edit. An edit that takes longer fails.  "
        "[default: no limit]",
    ),
    click.option(
        "--prepare-timeout",
        type=NumberType(0, 10**9, whole=False),
        envvar=PREPARE_VARIABLE,
        expose_value=False,
        callback=lambda _, __, value: _limit(PREPARE_VARIABLE, value),
        metavar="SECONDS",
        help="The longest time of one preparation or training. One that takes longer fails; a "
        "method that stores its state continues at the next call.  [default: no limit]",
    ),
    click.option("--seed", type=NUMBER, help="Random seed.  [default: 0]"),
    click.option(
        "--corpus",
        "corpora",
        multiple=True,
        metavar="[METHOD=]NAME",
        help="What to prepare the method on. Text: a world, a file or folder, wikitext, "
        "wikipedia, or self (the model writes it). Statistics: stats:ID. Or cases, for a "
        "method that trains on cases.  [default: the model's own, or self]",
    ),
)

fact_flags = flags(
    click.option("--prompt", help="The prompt, with {} in the place of the subject."),
    click.option(
        "--subject",
        help="The subject of the fact; auto: lmedit proposes it. Some methods need none.",
    ),
    click.option("--target", help="The new answer."),
    click.option(
        "--target-true", help="The present answer, if known; its probability is then reported too."
    ),
    click.option(
        "--fact",
        type=click.File(encoding="utf-8"),
        help="The fact as JSON: prompt, target_new[, subject, target_true]; - is stdin.",
    ),
)

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def _limit(variable: str, seconds: float | None) -> None:
    """Set a time limit of hooks for this process and its workers, until the command ends."""
    if seconds is None:
        return
    before = os.environ.get(variable)
    os.environ[variable] = str(seconds)

    def restore() -> None:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before

    click.get_current_context().call_on_close(restore)


def find_typed(*flags: str) -> list[str]:
    """Those of *flags* (as ``--seed``) that stand on the command line; defaults do not."""
    context = click.get_current_context()
    found = []
    for parameter in context.command.params:
        for flag in set(parameter.opts) & set(flags):
            source = context.get_parameter_source(str(parameter.name))
            if source is not None and source.name == "COMMANDLINE":
                found.append(flag)
    return sorted(found, key=flags.index)


def refuse_unused(why: str, *flags: str) -> None:
    """Raise `click.UsageError` if one of *flags* is typed; *why* says what it is for."""
    for flag in find_typed(*flags):
        raise click.UsageError(f"{flag} {why}; remove it")


def say(text: object) -> None:
    """Print *text* on stdout, with its control characters escaped."""
    click.echo(for_terminal(str(text)))


note_elsewhere: list[Callable[[str], object]] = []
"""In a process that answers another one: what takes the notes, so that the other prints them."""


def note(text: str) -> None:
    """Print *text*, a note for the user, on stderr."""
    if note_elsewhere:
        note_elsewhere[0](text)
    else:
        click.echo(for_terminal(text), err=True)


def as_json_text(value: Any) -> str:
    """*value* as indented JSON, in characters that stdout can encode."""
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return for_json(dump_json(value, ascii_only=encoding != "utf8"))


def tell_notes(lm: Lm) -> None:
    """Print the notes on how *lm* was loaded, on stderr."""
    for text in lm.notes:
        note(text)


def plan_of(given: dict[str, Any]) -> Plan:
    """Remove the flags of a `Plan` from *given* and build the plan; the other flags stay."""
    from lmedit.plan import Plan

    names = {
        "methods": "methods",
        "model": "model",
        "device": "device",
        "dtype": "dtype",
        "download": "download",
        "pairs": "options",
        "plugins": "plugins",
        "observers": "observers",
        "seed": "seed",
        "compute": "compute",
        "corpora": "corpora",
        "cases_name": "cases",
        "limit": "limit",
        "only": "only",
        "join": "join",
        "chat": "chat",
        "system": "system",
    }
    return Plan(**{names[flag]: given.pop(flag) for flag in list(given) if flag in names})


def fact_values(given: dict[str, Any]) -> dict[str, Any]:
    """Remove the fact flags from *given* and check the fact; no model is loaded.

    Raises `RequestError` with one line.
    """
    from lmedit.actions.given_fact import read_fact

    names = {
        "prompt": "prompt",
        "subject": "subject",
        "target": "target_new",
        "target_true": "target_true",
    }
    flags_given = {name: given.pop(flag) for flag, name in names.items()}
    file = given.pop("fact")
    return read_fact(flags_given, None if file is None else file.read(), note)


def fact_of(setup: Setup, values: Mapping[str, Any]) -> Request:
    """Build the request from *values* for the model and the methods of *setup*.

    Raises `RequestError` if a method needs a subject and the fact has none.
    """
    from lmedit.actions.given_fact import request_from_fact
    from lmedit.registry import check_subject

    request = request_from_fact(setup.lm, values, note)
    for loaded in setup.methods:
        check_subject(loaded, request)
    return request
