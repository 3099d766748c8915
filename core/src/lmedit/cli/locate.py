"""`lmedit locate METHOD FACT`: where it would edit; changes nothing."""

from __future__ import annotations

import json
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
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("method")
@fact_flags
@model_flags
@method_flags
@json_flag
def locate(
    method: str, model: str, device: str, dtype: str, pairs: tuple[tuple[str, str], ...],
    plugins: tuple[Path, ...], seed: int, corpus: str | None, *, download: bool, as_json: bool,
    **fact: Any,
) -> None:  # fmt: skip
    """Show which parameters METHOD would change for a fact, with the evidence."""
    methods = load_methods([method], plugins)
    lm = load_model(model, device, dtype, download=download)
    request = fact_of(lm, **fact)
    (editor,) = editors_for(lm, methods, pairs, seed=seed, corpus=corpus, download=download)
    location = editor.locate(request)
    sites = [
        {"parameter": site.parameter, "shape": list(lm.weight(site).shape)}
        for site in location.sites
    ]
    if as_json:
        found = {"method": method, "sites": sites, "evidence": dict(location.evidence)}
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for site in sites:
        click.echo(f"site       {site['parameter']}  (d_out, d_in) = {tuple(site['shape'])}")
    for name, value in location.evidence.items():
        click.echo(f"{name:<10} {value}")
