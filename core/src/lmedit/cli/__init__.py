"""The command line, one file per command. A command parses flags, calls one function and prints.

Data goes to stdout; progress and notes go to stderr. Exit code 0 means done, 1 an error that the
user can fix, 2 wrong usage. A traceback is a bug. Commands import heavy modules when they run.
"""

from __future__ import annotations

import atexit
import gc
import sys
import warnings
from difflib import get_close_matches
from typing import Any

import click

from lmedit.cli import quick_imports
from lmedit.cli.abilities import abilities
from lmedit.cli.apply import apply, log, revert, verify
from lmedit.cli.audit import audit
from lmedit.cli.cases import cases
from lmedit.cli.check import check
from lmedit.cli.compare import compare
from lmedit.cli.doctor import doctor
from lmedit.cli.edit import edit
from lmedit.cli.endings import close_stdout, keep_stdout, open_streams, signals_end, tell_end
from lmedit.cli.export import export, import_
from lmedit.cli.foreign import find_ours
from lmedit.cli.judge import judge
from lmedit.cli.locate import locate
from lmedit.cli.merge import merge
from lmedit.cli.methods import methods
from lmedit.cli.models import models
from lmedit.cli.new import new
from lmedit.cli.plan import plan
from lmedit.cli.plan_run import plan_run
from lmedit.cli.play import play
from lmedit.cli.prepare import prepare
from lmedit.cli.publish import publish
from lmedit.cli.report import report
from lmedit.cli.reproduce import reproduce
from lmedit.cli.show import show
from lmedit.cli.stats import stats
from lmedit.cli.try_ import try_
from lmedit.cli.tune import tune
from lmedit.cli.work import work
from lmedit.errors import LmeditError, UnsoundEditWarning, UsageError, one_line
from lmedit.version import __version__


class Cli(click.Group):
    """A group that turns every expected error into one line and exit code 1 or 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept ``-o @FILE`` beside ``-o KEY VALUE``; click expects two values after ``-o``."""
        return super().parse_args(ctx, _with_files(args))

    def __call__(self, *args: Any, **extra: Any) -> Any:
        """Run as the program of a process, which imports quickly (`quick_imports`)."""
        quick_imports.install()
        return super().__call__(*args, **extra)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the program. It always ends with an exit code, and an error is one line."""
        if not standalone_mode:
            return super().main(*args, **{**extra, "standalone_mode": False})
        atexit.register(gc.freeze)  # the last garbage collection would take a second
        open_streams()
        warnings.simplefilter("ignore", UnsoundEditWarning)  # the commands refuse or count them
        keep_stdout()
        try:
            with signals_end():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (raised again if a bug)
            code = tell_end(error)
        finally:
            close_stdout()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An `LmeditError` becomes a click error."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if hint := _option_hint(str(error.option_name)):
                raise click.UsageError(f"no such option {error.option_name}; {hint}") from error
            raise
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except LmeditError as error:
            raise click.ClickException(one_line(error)) from error


def _option_hint(flag: str) -> str | None:
    """How to give *flag* if it is, or nearly is, an option of a method of this project."""
    from lmedit.registry import load

    name = flag.lstrip("-").replace("-", "_")
    if name == "preset":
        return "a preset of a method is given so: -o preset NAME"
    owners: dict[str, list[str]] = {}
    for loaded in map(load, find_ours()):
        for option in loaded.method.options.model_fields:
            owners.setdefault(option, []).append(loaded.name)
    for near in get_close_matches(name, owners, n=1, cutoff=0.8):
        of = ", ".join(sorted(owners[near]))
        return f"{near} is an option of {of}; give it so: -o {near} VALUE"
    return None


def _with_files(args: list[str]) -> list[str]:
    flags = ("-o", "--option")
    return [
        part
        for flag, arg in zip(["", *args], args, strict=False)
        for part in ([arg[:1], arg[1:]] if flag in flags and arg.startswith("@") else [arg])
    ]


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lmedit")
def main() -> None:
    """Change single facts in a language model, measure what else changed, and take edits back."""


for command in (
    methods,
    show,
    plan,
    prepare,
    stats,
    tune,
    locate,
    edit,
    try_,
    play,
    apply,
    revert,
    log,
    verify,
    audit,
    export,
    import_,
    publish,
    abilities,
    compare,
    plan_run,
    work,
    merge,
    judge,
    report,
    reproduce,
    cases,
    models,
    new,
    check,
    doctor,
):
    main.add_command(command)
