"""Distributions of methods made on the spot: a dist-info folder, and a module."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
    import torch
    from lmedit import Dense, Lm, Location, Method, Options, Update, hookimpl

    class ToyOptions(Options):
        layer: int = 0

    @hookimpl
    def edit_describe() -> Method:
        return Method("NAME", "no paper", ToyOptions)

    @hookimpl
    def edit_locate(lm: Lm, options: ToyOptions) -> Location:
        return Location((lm.mlp_out(options.layer),))

    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        (site,) = location.sites
        return Update({site: Dense(torch.ones_like(lm.weight(site)))})
"""
Install = Callable[..., None]


def good(name: str, **changes: str) -> str:
    """The source of a good plugin, with pieces replaced."""
    source = textwrap.dedent(GOOD).replace("NAME", name)
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    return source


def computing(name: str, *deeds: str) -> str:
    """The source of a plugin whose compute hook does *deeds*, a line each, before it returns."""
    lines = "".join(f"    {deed}\n" for deed in deeds)
    return good(name, **{"    (site,) = location": f"{lines}    (site,) = location"})


def distribution_in(
    site: Path,
    name: str,
    source: str | None,
    *,
    distribution: str = "",
    module: str = "",
    value: str | None = None,
    metadata: str | None = "",
    group: str = "lmedit.methods",
) -> None:
    """Install a method (or what *group* says) into the folder *site*, as pip would."""
    distribution, module = distribution or f"lmedit-{name}", module or f"toy_{name}"
    info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    if metadata is not None:
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n"
        (info / "METADATA").write_text(head + metadata)
    points = f"[{group}]\n{name} = {module if value is None else value}\n"
    (info / "entry_points.txt").write_text(points)
    if source is not None:
        (site / f"{module}.py").write_text(source)
