"""A command line on a tiny model folder and a few records, all made here, all offline."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner, Result
from demo_cache import demo_is_prepared, demo_statistics
from pickled import on_ray
from short_text import short_held_out_text
from small_world import record, save_model

from lmedit.cli import main
from lmedit.testing import Texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["demo_is_prepared", "demo_statistics", "on_ray", "short_held_out_text"]


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


def call(*arguments: object, **extra: Any) -> Result:
    """Call the command line; a traceback or a variable that stays set fails the test."""
    before = set(os.environ)
    result = CliRunner().invoke(main, [str(part) for part in arguments], **extra)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert {name for name in os.environ if name.startswith("LMEDIT")} <= before
    return result


@pytest.fixture
def lmedit() -> Callable[..., Result]:
    """A function that calls the command line in the test's own folder."""
    return call


@pytest.fixture(scope="module")
def lmedit_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Result]]:
    """The same in one folder for all tests of a file, for what they only read or copy."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:

        def call_there(*arguments: object, **extra: Any) -> Result:
            with patch.context() as there:
                there.chdir(folder)
                there.setenv("LMEDIT_CACHE", str(folder / "cache"))
                return call(*arguments, **extra)

        yield call_there


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 in the hub's folder layout."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus file."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(Texts()), encoding="utf-8")
    return path


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A cases file of three records."""
    path = tmp_path / "cases.json"
    records = [record(0), record(1, "A small boat"), record(2, "Nobody in the city")]
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A forked process must not wait for threads that it has not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
