"""Installed distributions declare what Python says; files are read again only after changes."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmedit.storage import installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from made_plugins import Install

GROUPS = ("lmedit.methods", "lmedit.worlds", "lmedit.observers")


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every reading of the files."""
    found: list[object] = []
    read: Callable[[], Any] = installed._read

    def counted() -> Any:
        found.append(None)
        return read()

    monkeypatch.setattr(installed, "_read", counted)
    installed._LAST.clear()
    return found


def names(group: str) -> list[tuple[str, str]]:
    """The entry points of *group*; they must be those that Python itself finds."""
    ours = sorted((point.name, point.value) for point in installed.entry_points(group))
    found = importlib.metadata.entry_points(group=group)
    assert ours == sorted((point.name, point.value) for point in found)
    return ours


def test_nothing_is_read_again_while_nothing_changes(readings: list[object]) -> None:
    for _ in range(3):
        assert all(names(group) for group in GROUPS[:2])
        assert not names(GROUPS[2])
    assert len(readings) == 1


def test_what_is_installed_changed_and_uninstalled_is_seen(
    readings: list[object], install: Install, tmp_path: Path
) -> None:
    before, site = names(GROUPS[0]), tmp_path / "site"
    install("later", "")
    toy = ("later", "toy_later")
    assert names(GROUPS[0]) == sorted([*before, toy])
    info = site / "lmedit_later-1.5.dist-info"
    (info / "entry_points.txt").write_text("[lmedit.methods]\nrenamed = toy_later\n")
    assert names(GROUPS[0]) == sorted([*before, ("renamed", "toy_later")])
    about = (info / "METADATA").read_text() + "Requires-Dist: lmedit>=9\n"
    (info / "METADATA").write_text(about)
    (own,) = (
        each for each, _ in installed.declarations_of(GROUPS[0]) if each.name == "lmedit-later"
    )
    assert list(own.requires) == ["lmedit>=9"]
    shutil.rmtree(info)
    assert names(GROUPS[0]) == before
    assert len(readings) == 5


def test_a_folder_that_leaves_the_path_takes_its_methods_along(
    readings: list[object], install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("later", "")
    assert ("later", "toy_later") in names(GROUPS[0])
    site = str(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != site])
    assert ("later", "toy_later") not in names(GROUPS[0])
    assert len(readings) == 2


def test_the_first_of_two_distributions_with_one_name_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("later", "")
    other = tmp_path / "other"
    name = "lmedit_later-1.5.dist-info"
    shutil.copytree(tmp_path / "site" / name, other / name)
    points = other / name / "entry_points.txt"
    points.write_text("[lmedit.methods]\nlater = another\n")
    monkeypatch.syspath_prepend(other)
    assert ("later", "another") in names(GROUPS[0])
    both = [
        points for each, points in installed.declarations_of(GROUPS[0]) if each.name[7:] == "later"
    ]
    assert [point.value for each in both for point in each] == ["another", "toy_later"]


def test_distributions_without_a_folder_are_read_each_time(
    readings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            texts = {
                "METADATA": "Metadata-Version: 2.1\nName: other\nVersion: 1\n",
                "entry_points.txt": "[lmedit.methods]\nother = other\n",
            }
            return texts.get(filename)

        def locate_file(self, path: Any) -> Path:
            return Path(path)

    class Finder(importlib.metadata.DistributionFinder):
        def find_spec(self, *_: object) -> None:
            return None

        def find_distributions(self, context: Any = None) -> list[Other]:
            return [Other()]

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    for _ in range(2):
        assert ("other", "other") in names(GROUPS[0])
    assert len(readings) == 2
