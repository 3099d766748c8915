"""The long attack, for a few tries of each kind; `dev.py attack` does it for minutes."""

from __future__ import annotations

import attack
import pytest


@pytest.mark.parametrize("kind", attack.KINDS)
def test_a_few_tries_of_each_kind_find_nothing(kind: str) -> None:
    few = {"files": 60, "options": 40, "texts": 60, "kills": 2, "interrupts": 4}
    shapes = {"all options": 60, "folders": 20, "facts": 20, "flags": 10}
    newer = {"layouts": 20, "wheels": 10, "new flags": 10}
    most = (few | shapes | newer).get(kind, 3)
    reasons = [attack.try_once(kind, seed) for seed in range(1000, 1000 + most)]
    assert [reason for reason in reasons if reason is not None] == []


def test_a_failure_is_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad(*_: object) -> None:
        raise ValueError("\x1b[31m")

    monkeypatch.setitem(attack.KINDS, "texts", bad)
    assert attack.attack(["texts"], 60, 5, 2) == {"texts": [2, 2]}
    told = capsys.readouterr().err
    assert "texts, seed 6" in told
    assert "\x1b" not in told
