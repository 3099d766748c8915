"""`lmedit show METHOD`: print a method's options, presets and hooks, or a patch's facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import as_json_text, json_flag, note, plugin_flag, say
from lmedit.cli.foreign import runs_method
from lmedit.cli.patch_files import fact_line

if TYPE_CHECKING:
    from lmedit.registry import LoadedMethod


@click.command()
@click.argument("method")
@plugin_flag
@json_flag
@runs_method
def show(method: str, plugins: tuple[Path, ...], *, as_json: bool) -> None:
    """Show a method: its options with defaults and meaning, its presets, and its hooks.

    If METHOD is a patch file, show its fact, the changed matrices, the method and the model.
    """
    if Path(method).is_file():
        if plugins:
            raise click.UsageError("--plugin is for methods; remove it to show a patch")
        told = describe_patch(Path(method))
        say(as_json_text(told) if as_json else _patch_text(told))
        return
    from lmedit.plan import Plan

    (loaded,) = Plan(methods=(method,), plugins=plugins).load_methods(note)
    description = describe_method(loaded)
    say(as_json_text(description) if as_json else _text(description))


def describe_patch(path: Path) -> dict[str, Any]:
    """The facts of the patch file *path*, as JSON values."""
    from lmedit.edits.ledger import update_digest
    from lmedit.edits.patches import load_patch
    from lmedit.types import LowRank

    update, facts = load_patch(path)
    changes = [
        {
            "parameter": site.name,
            "shape": list(delta.shape),
            "rank": delta.left.shape[1] if isinstance(delta, LowRank) else None,
        }
        for site, delta in update.deltas.items()
    ]
    return {**facts, "id": update_digest(update), "changes": changes, "notes": dict(update.notes)}


def _patch_text(told: dict[str, Any]) -> str:
    """A patch as a few lines of text."""
    from lmedit.actions.edit_text import measured_lines, verdict_text

    model, seed = told.get("model", {}), told.get("options", {}).get("seed")
    revision = f", revision {model['revision'][:12]}" if model.get("revision") else ""
    touched = f", its changed matrices {model['touched'][:12]}" if model.get("touched") else ""
    lines = [
        fact_line(told),
        f"by {told.get('method')} {told.get('version')}{'' if seed is None else f', seed {seed}'}",
        f"on {model.get('name')} ({str(model.get('digest'))[:12]}{revision}{touched})",
    ]
    for change in told["changes"]:
        rows, columns = change["shape"]
        rank = "dense" if change["rank"] is None else f"rank {change['rank']}"
        lines.append(f"{change['parameter']}  {rows} x {columns}, {rank}")
    if told.get("carried"):
        lines.append(f"computed with {len(told['carried'])} earlier edit(s) in the model")
    if told.get("measured"):
        measured = told["measured"]
        lines.append(f"took: {measured['took']} of {measured['facts']} facts")
    if told.get("metrics"):
        lines += measured_lines(told.get("request", {}), told["metrics"])
        if "verdict" in told["metrics"]:
            lines.append(f"verdict: {verdict_text(told['metrics'])}")
    if told.get("budget"):
        from lmedit.compare.limits import values_text

        lines.append(f"budget: {values_text(told['budget']['limits'], told['budget']['values'])}")
    if told.get("forced"):
        lines.append(f"written with --force, although {told['forced']}")
    return "\n  ".join([f"edit {told['id'][:12]}", *lines])


def describe_method(loaded: LoadedMethod) -> dict[str, Any]:
    """The facts of a method, as JSON values."""
    from lmedit.registry import BUILT_IN

    options = loaded.method.options
    own = [
        plugin
        for plugin in loaded.manager.get_plugins()
        if not str(loaded.manager.get_name(plugin)).startswith(BUILT_IN)
    ]
    hooks = {call.name for plugin in own for call in loaded.manager.get_hookcallers(plugin) or []}
    return {
        "name": loaded.name,
        "distribution": loaded.distribution,
        "version": loaded.version,
        "paper": loaded.method.paper,
        "needs_preparation": loaded.method.prepares_on is not None,
        "prepares_on": loaded.method.prepares_on,
        "options": {
            name: {
                "default": options().model_dump(mode="json")[name],
                "meaning": field.description or "",
            }
            for name, field in options.model_fields.items()
        },
        "presets": {name: dict(values) for name, values in options.presets.items()},
        "hooks": sorted(hooks),
    }


def _text(description: dict[str, Any]) -> str:
    lines = [
        f"{description['name']} {description['version']}  {description['paper']}",
        "",
        "options (-o KEY VALUE)",
    ]
    for name, option in description["options"].items():
        lines.append(f"  {name:<22} {json.dumps(option['default']):<12} {option['meaning']}")
    if description["presets"]:
        lines += ["", "presets (-o preset NAME)"]
    for name, values in description["presets"].items():
        changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        lines.append(f"  {name:<22} {changes or 'the defaults'}")
    lines += ["", f"hooks: {', '.join(description['hooks'])}"]
    return "\n".join(lines)
