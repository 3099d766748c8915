"""The flags of tasks of the lm-evaluation-harness."""

from __future__ import annotations

import click

from lmedit.cli.common import flags
from lmedit.cli.parameter_types import COUNT, PLACE

include_flag = click.option(
    "--include-path",
    type=PLACE,
    metavar="FOLDER",
    help="A folder with YAML files of your own tasks for the lm-evaluation-harness.",
)

ability_flags = flags(
    click.option(
        "--abilities",
        metavar="TASKS",
        help="Measure these tasks of the lm-evaluation-harness before and after each edit, as "
        "arc_easy,piqa (lmedit[abilities]).",
    ),
    include_flag,
    click.option(
        "--ability-limit", type=COUNT, help="Ask only the first N documents of each task."
    ),
)
