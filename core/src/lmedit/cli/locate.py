"""`lmedit locate METHOD FACT`: show where the method would edit; nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.charts.html import short
from lmedit.cli.common import (
    as_json_text,
    asking_flags,
    fact_flags,
    fact_of,
    fact_values,
    json_flag,
    method_flags,
    model_flags,
    note,
    plan_of,
    refuse_unused,
    say,
)
from lmedit.cli.foreign import isolate_flag, runs_method
from lmedit.cli.parameter_types import COUNT, OUT
from lmedit.cli.unused import check_locating_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmedit.charts import Chart
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Request

    Facts = list[tuple[Request, str | None]]


@click.command()
@click.argument("method")
@fact_flags
@asking_flags
@model_flags
@method_flags
@isolate_flag
@click.option(
    "--plot",
    type=OUT,
    metavar="FILE",
    help="Draw the evidence into a .png, .svg or .html file.",
)
@click.option("--probe", is_flag=True, help="Also measure the effect of the location, if possible.")
@click.option(
    "--facts",
    metavar="NAME|FILE",
    help="Measure every fact of these cases that the model knows, and print the averages.",
)
@click.option(
    "--limit",
    type=COUNT,
    help="With --facts: use the first N cases.  [default: 100]",
)
@click.option(
    "--pooling",
    type=click.Choice(["facts", "notebook"]),
    help="With --facts: average over facts, each with the mean of its tokens; or over all tokens "
    "of all facts, as the ROME paper's notebook does.  [default: facts]",
)
@json_flag
@runs_method
def locate(
    method: str,
    plot: Path | None,
    facts: str | None,
    limit: int | None,
    pooling: str | None,
    *,
    probe: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show the parameters that METHOD would change for a fact, and the evidence."""
    from lmedit.plan import set_up

    _check_flags(facts, limit, pooling, given, probe=probe)
    if plot is not None:
        from lmedit.charts import files

        files.check_ending(plot)
    given["methods"] = (method,)
    plan = plan_of(given)
    values = None if facts else fact_values(given)
    known = _read_facts(facts, limit or LIMIT, download=plan.download) if facts else []
    probing = probe or facts is not None
    (loaded,) = plan.load_methods()
    check_locating_options(plan, loaded, probe=probing)
    if not probing and loaded.method.locates_answer is False:
        refuse_unused("is used only with --probe", "--target-true")
    setup = set_up(plan, note, probing=probing)
    request = None if values is None else fact_of(setup, values)
    editor = setup.locator(setup.methods[0], probe=probing)
    if request is None:
        told, charts = _average_over(editor, str(facts), known, pooling or "facts")
        _print(told, charts, plot, as_json=as_json, method=method)
        return
    told, charts = _locate_one(editor, request, probe=probe)
    _print(told, charts, plot, as_json=as_json, method=method)


def _locate_one(
    editor: Editor, request: Request, *, probe: bool
) -> tuple[dict[str, Any], tuple[Chart, ...]]:
    """The sites and the evidence for *request*, with *probe* also the measurements; the charts."""
    location = editor.locate(request)
    found: dict[str, Any] = {
        "method": editor.name,
        "sites": [
            {"parameter": site.name, "shape": list(editor.lm.weight(site).shape)}
            for site in location.sites
        ],
        "evidence": dict(location.evidence),
    }
    charts = location.charts
    if probe:
        probed = editor.probe(request, location)
        found["probe"] = dict(probed.values)
        charts += probed.charts
    return found, charts


def _print(
    found: Mapping[str, Any],
    charts: tuple[Chart, ...],
    plot: Path | None,
    *,
    as_json: bool,
    method: str,
) -> None:
    """Draw *charts* into *plot* if it is given, then print *found*."""
    if plot is not None:
        from lmedit.charts import files

        if not charts:
            raise click.UsageError(f"{method} has no evidence to draw; remove --plot")
        files.draw(charts, plot)
        note(f"the picture is in {plot}")
    say(as_json_text(found) if as_json else _text(found))


LIMIT = 100
FACT = ("prompt", "subject", "target", "target_true", "fact")


def _check_flags(
    facts: str | None, limit: int | None, pooling: str | None, given: dict[str, Any], *, probe: bool
) -> None:
    """Refuse flags that would not be used: those of one fact with --facts, and the reverse."""
    if facts is None:
        for name, value in (("--limit", limit), ("--pooling", pooling)):
            if value is not None:
                raise click.UsageError(f"{name} is for --facts; remove it, or give --facts")
        return
    single = [name for name in FACT if given.get(name) is not None]
    flag = f"--{single[0].replace('_', '-')}" if single else "--probe" if probe else None
    if flag is not None:
        why = "which always probes" if flag == "--probe" else "which measures many facts"
        raise click.UsageError(f"{flag} is not used with --facts, {why}; remove it")
    for name in FACT:
        given.pop(name, None)


def _read_facts(name: str, limit: int, *, download: bool) -> Facts:
    from lmedit.cases import load_facts

    return load_facts(name, limit, download=download)


def _average_over(
    editor: Editor, name: str, facts: Facts, pooling: str
) -> tuple[dict[str, Any], tuple[Chart, ...]]:
    """Average the probe over the facts of *name* that the model knows; also draw the charts."""
    from tqdm import tqdm

    from lmedit.actions.facts import average_facts, average_tokens, charts_of
    from lmedit.errors import RequestError

    found: list[Any] = []
    unknown, failed = 0, 0
    wanted = "averages" if pooling == "facts" else "pooled"
    for request, answer in tqdm(facts, disable=None):
        asked = editor.lm.formulate(request)
        if answer is not None and not _knows(editor.lm, asked.text, answer):
            unknown += 1
            continue
        try:
            found.append(getattr(editor.probe(request, editor.locate(request)), wanted))
        except RequestError as error:
            failed += 1
            note(f"{request.text!r}: {error}")
    if not any(found):
        raise RequestError(
            f"no fact of {name} could be measured ({unknown} not known by the model, {failed} "
            "failed); give facts that the model answers right"
        )
    if pooling == "notebook" and None in found:
        raise RequestError(f"{editor.name} has no pooling by tokens; remove --pooling notebook")
    averages = average_facts(found) if pooling == "facts" else average_tokens(found)
    counts = {"facts": len(found), "not known by the model": unknown, "failed": failed}
    told = {
        "method": editor.name,
        "facts": name,
        "pooling": pooling,
        "counts": counts,
        "averages": averages,
    }
    return told, charts_of(averages)


def _knows(lm: Lm, text: str, answer: str) -> bool:
    """Whether the model's most probable next token is the first token of *answer*."""
    return int(lm.next_probabilities(text).argmax()) == lm.with_target(text, answer)[1][0]


def _text(found: Mapping[str, Any]) -> str:
    """The result as text, one line for each value."""
    if "averages" in found:
        return "\n".join(_peaks(found))
    lines = [
        f"site       {site['parameter']}  (d_out, d_in) = {tuple(site['shape'])}"
        for site in found["sites"]
    ]
    evidence = found["evidence"] | {f"probe: {k}": v for k, v in found.get("probe", {}).items()}
    width = max([10, *map(len, evidence)])
    lines += [f"{name:<{width}} {short(value)}" for name, value in evidence.items()]
    return "\n".join(lines)


POOLINGS = {
    "facts": "facts, each with the mean of its tokens",
    "notebook": "all tokens of all facts, as the paper's notebook",
}


def _peaks(found: Mapping[str, Any]) -> list[str]:
    """For each series, the layer with the largest mean."""
    lines = [f"{name}: {count}" for name, count in found["counts"].items()]
    lines.append(f"averages over {POOLINGS[found['pooling']]}")
    for chart, series in found["averages"].items():
        lines.append(chart)
        for name, one in series.items():
            top = max(range(len(one["mean"])), key=one["mean"].__getitem__)
            band = f"{one['mean'][top]:.3f} ({one['half_width'][top]:.3f})"
            lines.append(f"  {name:<34} largest at layer {top}: {band}, n={one['n']}")
    return lines
