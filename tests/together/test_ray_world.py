"""The embedded world's comparison through Ray equals the one of this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from lmedit.compare.store import read_results
from lmedit.compare.worker import Worker
from lmedit.testing.executors import VARIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from click.testing import Result


def lasting(told: str) -> list[dict[str, Any]]:
    """The rows of the results without what differs from run to run."""
    rows = json.loads(told)["rows"]
    return [{key: value for key, value in row.items() if key not in VARIES} for row in rows]


def test_the_embedded_worlds_comparison_through_ray_is_the_local_one(
    lmedit: Callable[..., Result],
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver of Ray computes nothing itself."""
    flags = ("compare", "ft", "--limit", 4, "--json", "--run")
    plain = lmedit(*flags, tmp_path / "plain")

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the driver works itself")

    monkeypatch.setattr(Worker, "do", refuse)
    found = lmedit(*flags, tmp_path / "ray", "--executor", "ray", "--workers", 2)
    assert (plain.exit_code, found.exit_code) == (0, 0), found.stderr
    here, there = (read_results(tmp_path / name) for name in ("plain", "ray"))
    assert [(each.key, each.payload) for each in here] == [(e.key, e.payload) for e in there]
    assert len(here) == 8
    assert lasting(found.stdout) == lasting(plain.stdout)
    assert {"base", "ft"} == {each.method for each in there}
