"""Methods of other projects: each act runs in a process of its own, and the server goes on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from click.testing import CliRunner

import lmedit
from lmedit.cli import main
from lmedit.edits.ledger import update_digest
from lmedit.errors import BrokenPluginError, ModelChangedError
from lmedit.plan import Plan
from lmedit.storage.steps import WorkStopped
from lmedit.tiny import tiny_lm
from lmedit_play.comparing import compare
from lmedit_play.page import page_of
from lmedit_play.server import studio_of
from lmedit_play.sessions import Session
from lmedit_play.studio import edit, options
from lmedit_play.taking import python, shell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmedit.storage.steps import Step
    from lmedit_play.studio import Studio
    from lmedit_play.work import Job

pytestmark = pytest.mark.slow
OWN = """
import os, time, torch
from lmedit import Dense, Location, Method, Options, Update, hookimpl
from lmedit.storage.steps import tell_step

class Own(Options):
    size: float = 0.5
    act: str = ""

@hookimpl
def edit_describe():
    return Method("own", "no paper", Own)

@hookimpl
def edit_locate(lm):
    return Location((lm.mlp_out(0),))

@hookimpl
def edit_compute(lm, location, options):
    tell_step("own work", 1, 3, 2.5)
    if options.act == "end":
        os._exit(3)
    if options.act == "write":
        with torch.no_grad():
            lm.model.get_parameter(location.sites[0].parameter).add_(1.0)
    while options.act == "wait":
        time.sleep(0.01)
    site, = location.sites
    return Update({site: Dense(options.size * torch.ones(lm.weight(site).shape))})
"""
FACT = {"prompt": "{} is in the city of", "subject": "The tower", "target": "the sea"}


class Watching:
    """A job that keeps what it hears, and is stopped at the first step if *stops*."""

    def __init__(self, *, stops: bool = False) -> None:
        self.notes: list[str] = []
        self.steps: list[Step] = []
        self.stops = stops

    def note(self, text: str) -> None:
        """Keep *text*."""
        self.notes.append(text)

    def see(self, step: Step, html: Mapping[str, str]) -> None:
        """Keep *step*."""
        assert html == {}
        self.steps.append(step)

    def check(self) -> None:
        """Stop after the first step."""
        if self.stops and self.steps:
            raise WorkStopped


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A small model, one method of ours, and one of a plugin file."""
    folder, small = tmp_path_factory.mktemp("own"), tiny_lm()
    small.model.save_pretrained(folder / "tiny")
    small.tokenizer.save_pretrained(folder / "tiny")
    (folder / "own.py").write_text(OWN)
    return Plan(
        methods=("ft", "own"),
        model=str(folder / "tiny"),
        plugins=(folder / "own.py",),
        options=(("ft.layer", "0"), ("own.size", "0.25")),
    )


@pytest.fixture(scope="module")
def studio(plan: Plan) -> Studio:
    return studio_of(plan)


@pytest.fixture
def session() -> Iterator[Session]:
    found = Session()
    yield found
    found.close()


def work(act: Any, studio: Studio, session: Session, watching: Watching, **given: Any) -> Any:
    return act(studio, session, {**FACT, **given}, cast("Job", watching))


def test_the_method_is_offered_and_its_module_is_not_in_the_server(
    plan: Plan, studio: Studio
) -> None:
    import sys

    assert studio.names == ["ft", "own"]
    assert "<option>own</option>" in page_of(studio)
    assert str(plan.plugins[0].resolve()) not in sys.modules


def test_its_edit_is_that_of_the_terminal(
    plan: Plan, studio: Studio, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching()
    form = work(options, studio, session, watching, method="own")["html"]["options"]
    assert 'name="act"' in form
    assert 'placeholder="0.25"' in form
    work(edit, studio, session, watching, method="own", force=True, options={"size": "0.125"})
    assert [(step.work, step.done, step.total, step.loss) for step in watching.steps] == [
        ("the unedited model answers", 1, 1, None),
        ("own work", 1, 3, 2.5),
        ("the edited model answers", 1, 1, None),
    ]
    (kept,) = session.edits
    values: dict[str, Any] = {}
    exec(python(studio, [kept]), values)
    assert update_digest(values["updates"][0]) == kept.id
    monkeypatch.chdir(tmp_path)
    words = shlex.split(shell(studio, [kept], "patch", ""))
    done = CliRunner().invoke(main, [*words[1:], "--no-isolate"])
    assert done.exit_code == 0, done.output
    assert update_digest(lmedit.load_patch(Path(words[-1]))[0]) == kept.id


def test_what_it_does_to_its_process_stays_there(
    plan: Plan, studio: Studio, session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, watching = studio.lm.weights_digest(), Watching()
    with pytest.raises(BrokenPluginError) as ended:
        work(edit, studio, session, watching, method="own", options={"act": "end"})
    monkeypatch.chdir(tmp_path)
    fact = ("--prompt", FACT["prompt"], "--subject", FACT["subject"], "--target", FACT["target"])
    flags = ("-m", plan.model, "--plugin", str(plan.plugins[0]), "-o", "act", "end")
    done = CliRunner().invoke(main, ["edit", "own", *fact, *flags])
    assert done.stderr.splitlines()[-1] == f"Error: {ended.value}"
    assert "method 'own': its process ended with code 3; " in str(ended.value)
    with pytest.raises(ModelChangedError, match="changed the model outside apply and revert"):
        work(edit, studio, session, watching, method="own", options={"act": "write"})
    with pytest.raises(WorkStopped):
        work(edit, studio, session, Watching(stops=True), method="own", options={"act": "wait"})
    assert session.edits == []
    assert studio.lm.weights_digest() == before


def test_it_compares_beside_ours(plan: Plan, studio: Studio, session: Session) -> None:
    html = work(compare, studio, session, Watching(), methods=["own", "ft"])["html"]["table"]
    rows = [row.partition("</td>")[0] for row in html.split("<tr><td>")[1:]]
    assert rows == ["base", "own", "ft"]
    alone = work(compare, studio, session, Watching(), methods=["own"])["html"]["table"]
    assert "<tr><td>own</td><td>1</td><td>0</td>" in alone
