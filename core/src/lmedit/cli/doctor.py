"""`lmedit doctor`: print versions, devices, caches, worlds and broken methods."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from lmedit.cli.common import as_json_text, json_flag, say
from lmedit.cli.foreign import check_entries
from lmedit.storage.ours import file_sizes

LIBRARIES = ("lmedit", "torch", "transformers", "safetensors", "datasets", "pluggy", "pydantic")


@click.command()
@json_flag
def doctor(*, as_json: bool) -> None:
    """Print the facts for a bug report: versions, devices, the cache, worlds, broken methods."""
    found = findings()
    if as_json:
        say(as_json_text(found))
        return
    for title, values in found.items():
        say(f"{title}:")
        for name, value in values.items():
            say(f"  {name:<16} {value}")


def findings() -> dict[str, dict[str, Any]]:
    """The values that `doctor` prints, as JSON values."""
    import torch

    from lmedit.executors.finding import describe_executors
    from lmedit.models import worlds
    from lmedit.registry import entries
    from lmedit.storage.cache import cache_folder

    cache = cache_folder()
    sizes = file_sizes(cache)
    methods = check_entries(entries())
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "devices": {
            "cpu threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        },
        "cache": {
            "folder": str(cache),
            "files": len(sizes),
            "megabytes": round(sum(sizes) / 1e6, 1),
        },
        "worlds": {name: _tell_world(name) for name in worlds()},
        "executors": describe_executors(),
        "methods": {entry.name: f"{entry.state} {entry.reason}".strip() for entry in methods},
    }


def _tell_world(name: str) -> str:
    """The model of the world *name*, or why the world cannot be loaded."""
    from lmedit.errors import ModelError
    from lmedit.models import world

    try:
        return str(world(name).model)
    except ModelError as error:
        return f"broken {error}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
