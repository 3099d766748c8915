"""`lmedit judge RUN`: a program of the user judges the free answers of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    as_json_text,
    json_flag,
    note,
    say,
)
from lmedit.cli.parameter_types import PLACE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("run", type=PLACE)
@click.option(
    "--command", required=True, metavar="CMD", help="The program that judges, with its arguments."
)
@click.option("--name", help="The judge's name in the protocol.  [default: the program]")
@click.option("--release", metavar="TEXT", help="The judge's version in the protocol.")
@click.option(
    "--prompt",
    type=PLACE,
    metavar="FILE",
    help="The judge's prompt; the protocol gets its digest.",
)
@json_flag
def judge(
    run: Path,
    command: str,
    name: str | None,
    release: str | None,
    prompt: Path | None,
    *,
    as_json: bool,
) -> None:
    """Let the program CMD judge the free answers in RUN, a folder of `lmedit compare`.

    The program reads JSON lines with id, question, expected and text from stdin. For each it writes
    a line with id and right (true or false). The results of RUN then hold the shares, and
    judged.jsonl each verdict. lmedit itself sends nothing anywhere.
    """
    from lmedit.compare.table import align
    from lmedit.early import check_readable
    from lmedit.report.judging import VERDICTS, judge_of, judge_run

    check_readable("--prompt", prompt)
    told = judge_run(run, judge_of(command, name, release, prompt))
    if as_json:
        say(as_json_text(told))
        return
    lines = [["method", "n", "right", "after paraphrases"]]
    for row in told["rows"]:
        cells = [_share(row, kind) for kind in ("rewrite", "paraphrase")]
        lines.append([row["method"], str(row["rewrite_n"]), *cells])
    say("\n".join(align(lines)))
    note(f"judged by {told['name']}; the verdicts are in {run / VERDICTS}")


def _share(row: dict[str, float | None], kind: str) -> str:
    value, half = row[kind], row[f"{kind}_ci"]
    if value is None:
        return "-"
    return f"{value:.1f}" + ("" if half is None else f" ({half:.1f})")
