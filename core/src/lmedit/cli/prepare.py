"""`lmedit prepare METHOD`: statistics or training, once per model."""

from __future__ import annotations

import json
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
    note_other_models,
)

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.registry import LoadedMethod


@click.command()
@click.argument("method")
@model_flags
@method_flags
@click.option("--limit", type=click.IntRange(1), help="Cases to train on at most.")
@click.option(
    "--layers", help="Prepare for each of these layers, as 3,4,5; in one pass where the method can."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the training's curves: a .png, .svg or .html file.",
)
@json_flag
def prepare(
    method: str, model: str, device: str, dtype: str, pairs: tuple[tuple[str, str], ...],
    plugins: tuple[Path, ...], observers: tuple[str, ...], seed: int, corpora: tuple[str, ...],
    limit: int | None, layers: str | None, plot: Path | None, *, download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prepare METHOD for a model: shows progress, can be stopped and resumed, is cached."""
    from lmedit.charts import files
    from lmedit.options import build_options, for_methods
    from lmedit.pipeline import prepare as prepare_editor
    from lmedit.preparation import prepared_path

    if plot is not None:
        files.check(plot)
    (loaded,) = load_methods([method], plugins, observers)
    if loaded.method.prepares_on is None:
        note(f"{method} needs no preparation")
    lm = load_model(model, device, dtype, download=download)
    given: dict[str, Any] = dict(for_methods(pairs, [method])[method])
    if limit is not None:
        given["limit"] = limit
    note_other_models(lm, pairs)
    several = [build_options(loaded.method, {**given, **at}, lm, seed) for at in _each(layers)]
    material = _material(lm, loaded, corpora, download=download)
    found: list[dict[str, Any]] = []
    for options in several:
        editor = prepare_editor(loaded, lm, options, material, several)
        path = prepared_path(loaded, lm, options, material)
        found.append({
            "method": method, "path": str(path), "facts": dict(editor.prepared.facts),
        })  # fmt: skip
    if plot is not None:
        _draw(found[0]["facts"], plot)
    if as_json:
        click.echo(json.dumps(found if layers else found[0], indent=1))
        return
    click.echo("\n\n".join(_text(**one) for one in found if one["facts"]))


def _text(path: str, facts: dict[str, Any], **_: Any) -> str:
    """The facts of a preparation, a line each."""
    lines = [f"{name:<22} {value}" for name, value in facts.items() if name != "curve"]
    return "\n".join([*lines, f"{'kept in':<22} {path}"])


def _each(layers: str | None) -> list[dict[str, int]]:
    """What --layers adds to the options, once for each of them."""
    if layers is None:
        return [{}]
    try:
        return [{"layer": int(part)} for part in layers.split(",")]
    except ValueError:
        raise click.UsageError(f"--layers {layers!r}: numbers as 3,4,5 were expected") from None


def _material(lm: Lm, loaded: LoadedMethod, corpora: tuple[str, ...], *, download: bool) -> Any:
    """What the method is prepared on; one that is trained falls back to the model's own cases."""
    from lmedit.cases import load_cases
    from lmedit.models import worlds

    if loaded.method.prepares_on != "cases":
        return materials(lm, [loaded], corpora, download=download)[loaded.name]
    name = corpora[-1].removeprefix(f"{loaded.name}=") if corpora else None
    if name is None:
        # None: a published editor needs no cases, and a training says what it needs.
        return load_cases(str(lm.training)) if lm.training else None
    world = worlds().get(name)
    own = world.training if world else None
    return load_cases(str(own) if own else name, download=download)


def _draw(facts: dict[str, Any], path: Path) -> None:
    from lmedit.charts import files
    from lmedit.errors import OptionError
    from lmedit.hyper.training import curves

    if "curve" not in facts:
        raise OptionError("nothing was trained, so there is no curve; leave --plot out")
    files.draw(curves(facts["curve"]), path)
    note(f"the curves are {path}")
