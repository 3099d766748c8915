"""`lmedit prepare METHOD`: statistics or training, once per model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    editors_for,
    json_flag,
    load_methods,
    load_model,
    method_flags,
    model_flags,
    note,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("method")
@model_flags
@method_flags
@json_flag
def prepare(
    method: str, model: str, device: str, dtype: str, pairs: tuple[tuple[str, str], ...],
    plugins: tuple[Path, ...], seed: int, corpus: str | None, *, download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prepare METHOD for a model: shows progress, can be stopped and resumed, is cached."""
    from lmedit.cases import corpus_of
    from lmedit.pipeline import prepared_path

    (loaded,) = load_methods([method], plugins)
    if not loaded.method.needs_preparation:
        note(f"{method} needs no preparation")
    lm = load_model(model, device, dtype, download=download)
    (editor,) = editors_for(lm, [loaded], pairs, seed=seed, corpus=corpus, download=download)
    texts = corpus_of(corpus, lm.text, download=download)
    path = prepared_path(loaded, lm, editor.options, texts)
    facts = dict(editor.prepared.facts)
    if as_json:
        click.echo(json.dumps({"method": method, "path": str(path), "facts": facts}, indent=1))
        return
    for name, value in facts.items():
        click.echo(f"{name:<22} {value}")
    if facts:
        click.echo(f"{'kept in':<22} {path}")
