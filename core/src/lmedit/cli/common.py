"""What several commands share: flags, and how the flags become a model, options and a fact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.plan import Plan, Setup
    from lmedit.types import Request

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def flags(*decorators: Decorator) -> Decorator:
    """Several click options as one decorator, shown in the order given."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_flags = flags(
    click.option("-m", "--model", default="demo", envvar="LMEDIT_MODEL", show_default=True,
                 show_envvar=True, help="A world, a model folder, or a hub id."),
    click.option("--device", default="auto", show_default=True,
                 help="cpu, cuda, mps, ...; map: spread over all devices, by accelerate."),
    click.option("--dtype", default="auto", show_default=True,
                 type=click.Choice(["auto", "float32", "bfloat16", "float16", "float64"]),
                 help="The model's number type; auto: the checkpoint's."),
    click.option("--download", is_flag=True, help="Allow fetching from the hub."),
)  # fmt: skip

method_flags = flags(
    click.option("-o", "--option", "pairs", nargs=2, multiple=True, metavar="KEY VALUE",
                 help="An option of the method (METHOD.KEY where several run); or: preset NAME; "
                 "or @FILE, which lmedit tune wrote."),
    click.option("--plugin", "plugins", multiple=True, metavar="FILE.py",
                 type=click.Path(path_type=Path), help="A method from one file; repeatable."),
    click.option("--observe", "observers", multiple=True, metavar="NAME|FILE.py",
                 help="An observer that watches the hooks (docs/hooks.md); repeatable."),
    click.option("--seed", type=click.IntRange(0),
                 help="The seed of everything random.  [default: 0]"),
    click.option("--corpus", "corpora", multiple=True, metavar="[METHOD=]NAME",
                 help="What to prepare on: text (a world, a file or folder, wikitext, wikipedia), "
                 "statistics (stats:ID), or cases where a method is trained on them. Default: the "
                 "model's own."),
)  # fmt: skip

fact_flags = flags(
    click.option("--prompt", help="The prompt, with {} where the subject stands."),
    click.option("--subject",
                 help="The subject of the fact; auto: lmedit proposes it. Some methods need none."),
    click.option("--target", help="The new answer."),
    click.option("--target-true", help="The present answer, if known; its probability is then "
                 "reported too."),
    click.option("--fact", type=click.File(encoding="utf-8"),
                 help="The fact as JSON: prompt, target_new[, subject, target_true]; - is stdin."),
)  # fmt: skip

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def note(text: str) -> None:
    """A remark for the person at the terminal, on stderr."""
    click.echo(text, err=True)


def fact_line(facts: Mapping[str, Any]) -> str:
    """The fact of a patch's *facts*: the filled prompt and the new answer; or its adapter."""
    request = facts.get("request", {})
    if not request:
        return f"adapter {facts['adapter']}" if "adapter" in facts else "no request"
    text = str(request.get("prompt", "")).replace("{}", str(request.get("subject") or "{}"))
    return f"{text} -> {request.get('target_new')}"


def plan_of(given: dict[str, Any]) -> Plan:
    """Take the flags of a `Plan` out of *given*; the other flags stay there."""
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
        "corpora": "corpora",
        "cases_name": "cases",
        "limit": "limit",
    }
    return Plan(**{names[flag]: given.pop(flag) for flag in list(given) if flag in names})


def fact_values(given: dict[str, Any]) -> dict[str, Any]:
    """Take the fact flags out of *given* and check the fact; no model is loaded.

    Raises `RequestError` with one clear line.
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
    """The request of *values* for the model and the methods of *setup*.

    Raises `RequestError` where a method needs a subject and the fact names none.
    """
    from lmedit.actions.given_fact import request_of
    from lmedit.pipeline import check_subject

    request = request_of(setup.lm, values, note)
    for loaded in setup.methods:
        check_subject(loaded, request)
    return request
