"""What an edit of the shown fact needs is computed while no job waits."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from lmedit.errors import RequestError
from lmedit.plan import Plan, Setup
from lmedit.registry import load
from lmedit.stats import SelfWritten, self_written
from lmedit.storage.steps import Step, WorkStopped, watched
from lmedit.tiny import tiny_lm
from lmedit_play import ahead, work
from lmedit_play.ahead import pieces_ahead
from lmedit_play.sessions import Session
from lmedit_play.studio import Studio, edit, look, switch, verify
from lmedit_play.work import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lmedit import Lm

    Counted = Callable[[Lm], AbstractContextManager[list[int]]]

FACT = {"prompt": "{} is in the city of", "subject": "The tower", "target": "the sea"}


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_lm()


def go_on() -> None:
    """Nobody asks a piece to end."""


def studio_of(lm: Lm, *methods: str, **given: str) -> Studio:
    plan = Plan(methods=methods, options=tuple(given.items()))
    return Studio(Setup(plan, tuple(map(load, methods)), lm))


def edited(counted: Counted, studio: Studio, **more: Any) -> list[int]:
    """The rows of each pass of an edit of `FACT`."""
    given = {**FACT, "method": "ft", "options": {"layer": "0", "steps": "1"}, **more}
    session = Session()
    with counted(studio.lm) as passes:
        edit(studio, session, given, cast("Job", ahead.Silent()))
    session.close()
    return passes


def test_an_edit_after_its_pieces_asks_the_unedited_model_nothing_more(
    lm: Lm, counted: Counted
) -> None:
    alone = len(edited(counted, studio_of(lm, "ft"), force=True))
    studio = studio_of(lm, "ft")
    for piece in pieces_ahead(studio, {**FACT, "method": "ft"}):
        piece(go_on)
    assert len(edited(counted, studio, force=True)) < 0.7 * alone


def test_a_fact_that_cannot_be_edited_leaves_the_method_alone(lm: Lm) -> None:
    studio = studio_of(lm, "ft", layer="0")
    for wrong in ({**FACT, "subject": "no such", "prompt": "It is"}, {"prompt": "", "target": "x"}):
        (piece,) = pieces_ahead(studio, {**wrong, "method": "ft"})
        piece(go_on)
        assert len(studio._editors) == 1


def test_only_a_short_preparation_is_made_unasked(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path))
    text = tmp_path / "text.txt"
    text.write_text("The tower is in the city. A small boat is on the sea.\n" * 200)
    plan = Plan(
        methods=("rome",),
        corpora=(str(text),),
        options=(("layer", "0"), ("samples", "200"), ("ridge", "0.01")),
    )
    studio = Studio(Setup(plan, (load("rome"),), lm))
    (piece,) = pieces_ahead(studio, {"method": "rome"})

    def is_prepared() -> bool:
        loaded = load("rome")
        return studio.is_ready(loaded, studio.setup.options(loaded))

    with monkeypatch.context() as less:
        less.setattr(ahead, "SHORT_WORK", 1.0)
        piece(go_on)
    assert not is_prepared()

    def stop() -> None:
        raise WorkStopped

    with pytest.raises(WorkStopped):
        piece(stop)
    assert not is_prepared()
    piece(go_on)
    assert is_prepared()


def test_a_job_comes_before_what_is_computed_ahead(lm: Lm) -> None:
    done: list[str] = []
    job_is_there, first_began, long_end, end = (threading.Event() for _ in range(4))

    def long(check: Callable[[], None]) -> None:
        first_began.set()
        job_is_there.wait(10)
        check()
        done.append("long")
        long_end.set()

    def wrong(_: object) -> None:
        raise RequestError("the act tells it")

    def last(_: object) -> None:
        done.append("last")
        end.set()

    def act(_: Job) -> dict[str, str]:
        done.append("job")
        return {}

    async def play() -> None:
        worker = Worker(lambda: None)
        worker.look_ahead("a", lambda: [lambda _: done.append("dropped")])
        worker.look_ahead("a", lambda: [long])
        assert first_began.wait(10)
        worker.start(Job(act, lm))
        worker.look_ahead("b", lambda: [wrong, last])
        worker.look_ahead("c", lambda: [last])
        job_is_there.set()
        assert end.wait(10)
        worker.close()

    asyncio.run(play())
    first, *others = [each for each in done if each != "dropped"]
    assert first == "job"
    assert sorted(others) == ["last", "long"]


def test_silent_work_tells_that_it_goes_on(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "ALIVE", 0.01)
    end = threading.Event()

    def act(_: Job) -> dict[str, str]:
        assert end.wait(10)
        return {}

    async def play() -> list[dict[str, Any]]:
        worker, job, found = Worker(lambda: None), Job(act, lm), []
        worker.start(job)
        async for event in job.events():
            found.append(event)
            if len(found) == 2:
                end.set()
        worker.close()
        return found

    *silent, last = asyncio.run(play())
    assert silent[:2] == [{"alive": 0}] * 2
    assert last == {"done": {}}


def test_the_model_tells_how_far_its_own_text_is(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_written, "TOKENS", 3)
    monkeypatch.setattr(self_written, "BATCH", 2)
    seen: list[Step] = []
    with watched(seen.append):
        assert len(SelfWritten(lm)._write(1)) == 2
    told = "the model writes text 3 to 4, tokens"
    assert [(step.work, step.done, step.total) for step in seen] == [
        (told, n, 3) for n in (1, 2, 3)
    ]


def test_an_act_that_fails_leaves_its_tab_as_it_was(lm: Lm) -> None:
    """A text that is too long must not spoil every later act."""
    studio, session, quiet = studio_of(lm, "ft"), Session(), cast("Job", ahead.Silent())
    given = {**FACT, "method": "ft", "options": {"layer": "0", "steps": "1"}, "force": True}
    edit(studio, session, given, quiet)
    before = session.request, session.texts, dict(session.html)
    for act, wrong in (
        (look, {"texts": ["a" * 500]}),
        (look, {**FACT, "subject": "a" * 500, "texts": []}),
        (edit, {**given, "target": "a boat", "prompt": "The {}" + "a" * 500}),
    ):
        with pytest.raises(RequestError), session.all_or_nothing():
            act(studio, session, wrong, quiet)
        assert (session.request, session.texts, session.html) == before
    (kept,) = session.edits
    with suppress(WorkStopped), session.all_or_nothing():
        switch(studio, session, {"edit": kept.id, "on": False}, quiet)
        raise WorkStopped
    assert kept.on
    assert "all off" in verify(studio, session, {}, quiet)["say"]
    session.close()
