"""`lmedit check NAME|FILE`: the laws, tried on a method and a model, one by one."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    json_flag,
    load_methods,
    load_model,
    materials,
    method_flags,
    model_flags,
    note,
)

if TYPE_CHECKING:
    from lmedit.laws import Trial
    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Prepared, Request


@click.command()
@click.argument("method", metavar="METHOD|FILE.py")
@model_flags
@method_flags
@json_flag
def check(
    method: str, model: str, device: str, dtype: str, pairs: tuple[tuple[str, str], ...],
    plugins: tuple[Path, ...], observers: tuple[str, ...], seed: int, corpora: tuple[str, ...], *,
    download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Try the laws (docs/hooks.md) on a method, law by law; exit code 1 where one is broken.

    Statistics are prepared for it. A method that is trained on cases must be prepared before.
    """
    from lmedit.laws import Verdict, verdicts
    from lmedit.options import build_options, for_methods
    from lmedit.registry import load_file

    if method.endswith(".py"):
        plugins += (Path(method),)
        method = load_file(Path(method)).name
    (loaded,) = load_methods([method], plugins, observers)
    lm = load_model(model, device, dtype, download=download)
    given = for_methods(pairs, [loaded.name])[loaded.name]
    options = build_options(loaded.method, given, lm, seed)
    material = materials(lm, [loaded], corpora, download=download)[loaded.name]
    found: list[Verdict] = []
    for verdict in verdicts(_trial(loaded, lm, options, material)):
        found.append(verdict)
        if not as_json:
            click.echo(_text(verdict))
    if as_json:
        click.echo(json.dumps([asdict(verdict) for verdict in found], indent=1))
    broken = [str(verdict.law) for verdict in found if verdict.state != "pass"]
    if loaded.method.prepares_on == "cases":
        note(f"{loaded.name} was prepared before: its training was not tried")
    if broken:
        note(f"{loaded.name} on {lm.name}: not kept: {', '.join(broken)}")
        raise click.exceptions.Exit(1)
    note(f"{loaded.name} on {lm.name}: all laws are kept")


def _text(verdict: Any) -> str:
    reason = f"\n    {verdict.reason}" if verdict.reason else ""
    return f"{verdict.law}  {verdict.state:<9}  {verdict.says}{reason}"


def _trial(loaded: LoadedMethod, lm: Lm, options: Options, material: Any) -> Trial:
    from lmedit.laws import OTHER, REQUEST, Trial
    from lmedit.pipeline import ready
    from lmedit.storage.tensors import Checkpoint

    def prepare() -> Prepared:
        if loaded.method.prepares_on == "cases":
            return ready(loaded, lm, options, material).prepared
        with tempfile.TemporaryDirectory() as folder:
            found: Prepared = loaded.manager.hook.edit_prepare(
                lm=lm, options=options, corpus=material, beside=(),
                checkpoint=Checkpoint(Path(folder) / "state"),
            )  # fmt: skip
        return found

    request, other = _facts(lm) or (REQUEST, OTHER)
    return Trial(loaded, lm, options, prepare, loaded.name, request, other)


def _facts(lm: Lm) -> tuple[Request, Request] | None:
    """Two facts that a world's model knows."""
    from lmedit.cases import load_cases
    from lmedit.models import worlds

    if lm.name not in worlds():
        return None
    one, other = load_cases(lm.name, 2).good
    return one.request, other.request
