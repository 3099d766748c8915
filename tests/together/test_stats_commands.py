"""`lmedit stats` and `lmedit prepare --layers`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def counted(lmedit: Run, model: Path, text: Path) -> list[dict[str, object]]:
    """Statistics of two layers of the tiny model, from one pass."""
    flags = ["-m", model, "--corpus", text]
    found = json.loads(lmedit("prepare", "rome", *flags, "--layers", "2,0", "--json").stdout)
    assert [one["facts"]["layer"] for one in found] == [2, 0]
    listed: list[dict[str, object]] = json.loads(lmedit("stats", "list", "--json").stdout)
    assert [one["layer"] for one in sorted(listed, key=lambda o: str(o["layer"]))] == [0, 2]
    return listed


def test_what_is_stored_is_listed_and_verified(
    lmedit: Run, counted: list[dict[str, object]]
) -> None:
    table = lmedit("stats", "list").stdout.splitlines()
    assert len(table) == 3
    assert table[0].startswith("id")
    assert all(str(one["id"]) in "\n".join(table) for one in counted)
    verified = lmedit("stats", "verify")
    assert verified.exit_code == 0
    assert verified.stdout.count("ok, condition") == 2
    one = json.loads(lmedit("stats", "verify", counted[0]["id"], "--json").stdout)
    assert one[0]["condition"] > 1


def test_a_damaged_file_is_named(lmedit: Run, counted: list[dict[str, object]]) -> None:
    path = Path(str(counted[0]["path"]))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = lmedit("stats", "verify")
    assert done.exit_code == 1
    assert "checksum" in done.stdout
    assert "ok, condition" in done.stdout


def test_statistics_travel_and_are_prepared_on(
    lmedit: Run,
    counted: list[dict[str, object]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = next(o for o in counted if o["layer"] == 2)
    for name in ("two.safetensors", "two.npz"):
        assert lmedit("stats", "export", one["id"], "-O", name).exit_code == 0
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "elsewhere"))
    came = lmedit("stats", "import", "two.safetensors").stdout.strip()
    assert came == f"stats:{one['id']}"
    flags = ["-m", model, "-o", "layer", "2"]
    first = json.loads(lmedit("prepare", "rome", *flags, "--corpus", came, "--json").stdout)
    assert first["facts"]["tokens"] == one["tokens"]
    npz = lmedit("stats", "import", "two.npz", "-m", model, "--layer", "2", "--json")
    assert json.loads(npz.stdout)["corpus"] == "imported from two.npz"
    other = lmedit("prepare", "rome", "-m", model, "-o", "layer", "1", "--corpus", came)
    assert other.exit_code == 1
    assert "not of layer 1" in other.stderr


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (["stats", "import", "nowhere.npz"], "give -m MODEL and --layer N"),
        (["stats", "import", "nowhere.safetensors"], "no file 'nowhere.safetensors'"),
        (["stats", "export", "abc", "-O", "x.npz"], "no statistics begin with 'abc'"),
        (["prepare", "rome", "--corpus", "stats:abc"], "no statistics begin with 'abc'"),
    ],
)
def test_what_is_not_there_is_one_line(
    lmedit: Run, model: Path, call: list[str], culprit: str
) -> None:
    done = lmedit(*call, *(["-m", model] if call[0] == "prepare" else []))
    assert done.exit_code == 1
    assert culprit in done.stderr
    assert done.stderr.count("\n") == 1


def test_layers_are_numbers(lmedit: Run, model: Path, text: Path) -> None:
    done = lmedit("prepare", "rome", "-m", model, "--corpus", text, "--layers", "one")
    assert done.exit_code == 2
    assert "give numbers, for example 3,4,5" in done.stderr
    none = lmedit("stats", "list")
    assert (none.exit_code, none.stdout) == (0, "")
    assert "no statistics are stored" in none.stderr
