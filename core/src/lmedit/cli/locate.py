"""`lmedit locate METHOD FACT`: where it would edit; changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    editors_for,
    fact_flags,
    fact_of,
    json_flag,
    load_methods,
    load_model,
    method_flags,
    model_flags,
    note,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

LONG = 12
"""A list with more entries than that is cut in the terminal; --json shows it whole."""


@click.command()
@click.argument("method")
@fact_flags
@model_flags
@method_flags
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the evidence: a .png, .svg or .html file.",
)
@click.option("--probe", is_flag=True, help="Also try the place out, where the method can.")
@json_flag
def locate(
    method: str, model: str, device: str, dtype: str, pairs: tuple[tuple[str, str], ...],
    plugins: tuple[Path, ...], seed: int, corpora: tuple[str, ...], plot: Path | None, *,
    download: bool, probe: bool, as_json: bool, **fact: Any,
) -> None:  # fmt: skip
    """Show which parameters METHOD would change for a fact, with the evidence."""
    if plot is not None:
        from lmedit import drawing

        drawing.check(plot)
    methods = load_methods([method], plugins)
    lm = load_model(model, device, dtype, download=download)
    request = fact_of(lm, **fact)
    (editor,) = editors_for(lm, methods, pairs, seed=seed, corpora=corpora, download=download)
    location = editor.locate(request)
    found: dict[str, Any] = {
        "method": method,
        "sites": [
            {"parameter": site.parameter, "shape": list(lm.weight(site).shape)}
            for site in location.sites
        ],
        "evidence": dict(location.evidence),
    }
    charts = location.charts
    if probe:
        probed = editor.probe(request, location)
        found["probe"] = dict(probed.values)
        charts += probed.charts
    if plot is not None:
        if not charts:
            raise click.UsageError(f"{method} has no evidence to draw; leave --plot out")
        drawing.draw(charts, plot)
        note(f"the picture is {plot}")
    click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else _told(found))


def _told(found: Mapping[str, Any]) -> str:
    """What was found, a line each."""
    lines = [
        f"site       {site['parameter']}  (d_out, d_in) = {tuple(site['shape'])}"
        for site in found["sites"]
    ]
    evidence = found["evidence"] | {f"probe: {k}": v for k, v in found.get("probe", {}).items()}
    width = max([10, *map(len, evidence)])
    lines += [f"{name:<{width}} {_short(value)}" for name, value in evidence.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    """A value as a terminal has room for it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        more = f", ... {len(value)} in all" if len(value) > LONG else ""
        return f"[{', '.join(_short(part) for part in value[:LONG])}{more}]"
    return str(value)
