"""One reader for every file: depth, sizes, numbers, encoding, kinds and a schema number."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lmedit import Dense, Update
from lmedit.cases.corpus import corpus_of
from lmedit.cli import main
from lmedit.compare.store import RunStore, Stored, read_results
from lmedit.edits.recipes import read_recipe
from lmedit.errors import ArtifactError, LmeditError, OptionError, RunError
from lmedit.models.load import _read_tuned
from lmedit.options import build_options, parse_value, read_tuned
from lmedit.registry import load
from lmedit.report.read import read_run
from lmedit.stats import import_statistics, list_statistics
from lmedit.stats.counting import first_tokens
from lmedit.storage.arrays import read_npz
from lmedit.storage.json_files import dump_json, parse_json, read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmedit import Lm

DEEP = "[" * 500 + "]" * 500
UNSOUND = {
    "deep": DEEP,
    "deeper": "[" * 200_000,
    "not a number": "[NaN]",
    "infinite": '{"a": Infinity}',
    "too large": "[1e999]",
    "half a character": '["\\ud800"]',
    "half a key": '{"\\ud800": 1}',
    "long number": f"[{'9' * 5000}]",
    "long number that Python reads": f"[{'9' * 4000}]",
    "cut": '{"a": [1',
    "empty": "",
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_the_reader_refuses_what_is_unsound(kind: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|number|surrogates|int|Expecting|property"):
        parse_json(UNSOUND[kind])


def test_nan_may_be_read_as_none_and_is_never_written() -> None:
    assert parse_json('{"a": NaN, "b": [Infinity, 1e999]}', nan_is_none=True) == {
        "a": None,
        "b": [None, None],
    }
    assert json.loads(dump_json({"a": [float("nan"), (float("inf"),)]})) == {"a": [None, [None]]}
    assert json.loads(dump_json(["\ud800"]).encode()) == ["\\ud800"]


def test_a_file_is_refused_by_its_size_and_kind(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="MiB"):
        read_json(large)
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path / "pipe")


READERS: dict[str, Callable[[Path], object]] = {
    "options": read_tuned,
    "options of a model": _read_tuned,
    "recipe": read_recipe,
    "corpus": lambda path: list(corpus_of(str(path), None)),
    "results": lambda path: read_run(path.parent),
}
NAMES = {"corpus": "a.jsonl", "results": "results.json", "recipe": "a.toml"}
KINDS: tuple[Any, ...] = (None, True, 3, "a", [], [1], {"ft": None}, {"ft": {"options": [1]}})


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_in_one_line(reader: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES.get(reader, "a.json")
    kinds = [json.dumps(kind) for kind in KINDS]
    kinds += [json.dumps({"ft": {"options": {}, "evidence": evidence}}) for evidence in (1, [], "")]
    for text in [*UNSOUND.values(), *kinds, "a = " + "[" * 3000, f"a = {'9' * 5000}"]:
        if not text and reader == "corpus":
            continue
        path.write_text(text)
        with pytest.raises(LmeditError) as caught:
            READERS[reader](path)
        assert "\n" not in str(caught.value).strip()


def test_deep_options_are_text() -> None:
    assert parse_value(DEEP) == DEEP
    assert parse_value("[1, 2]") == [1, 2]
    for key in ("layer", "steps"):
        with pytest.raises(OptionError):
            build_options(load("ft").method, {key: DEEP})


def saved(path: Path, S: Any, count: Any, documents: Any = 1) -> Path:
    arrays = {"mom2.mom2": S, "mom2.count": count, "sample_size": documents}
    np.savez_compressed(path, **{n: np.asarray(a) for n, a in arrays.items()})
    return path


def test_statistics_that_cannot_be_are_not_imported(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    size = lm.weight(lm.mlp_out(0)).shape[1]
    good = np.eye(size, dtype=np.float32)
    bad: list[tuple[Any, Any]] = [(good, [5]), (good, np.inf), (good, 1e300), (good, -3)]
    bad += [(good, 0), (good, 1.5), (good, np.nan), (0 * good, 5), (-good, 5), (good[:3], 5)]
    bad += [(good.astype("O") if False else good.astype("c8"), 5), (good.astype("U1"), 5)]
    bad += [(np.zeros((3000, 3000), np.float32), 5), (good * np.nan, 5)]
    for number, (S, count) in enumerate(bad):
        path = saved(tmp_path / f"{number}.npz", S, count)
        with pytest.raises(ArtifactError):
            import_statistics(path, lm, 0)
    assert list_statistics() == []
    one = import_statistics(saved(tmp_path / "good.npz", good, 5), lm, 0)
    assert [each.id for each in list_statistics()] == [one.id]
    (one.path.parent / "damaged.safetensors").write_bytes(b"no")
    shown = CliRunner().invoke(main, ["stats", "list", "--json"])
    assert shown.exit_code == 0
    assert one.id[:12] in shown.stdout
    assert "damaged" in shown.stderr
    assert CliRunner().invoke(main, ["stats", "verify"]).exit_code == 1


def test_an_array_is_not_read_before_its_header_fits(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue())
        archive.writestr("b.npy", header.getvalue() + bytes(1 << 24))
    for name in ("a", "b"):
        with pytest.raises(ValueError, match="shape"):
            list(read_npz(tmp_path / "a.npz", [name], [(2, 2)]))
        small = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            small, {"descr": "<f4", "fortran_order": False, "shape": (2, 2)}
        )
        with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
            archive.writestr("a.npy", small.getvalue() + bytes(3 if name == "a" else 99))
        with pytest.raises(ValueError, match="bytes"):
            list(read_npz(tmp_path / "c.npz", ["a"], [(2, 2)]))


def test_a_long_text_is_cut_before_it_is_encoded(lm: Lm) -> None:
    seen: list[int] = []

    class Counts:
        def encode(self, text: str) -> list[int]:
            seen.append(len(text))
            return lm.encode(text)

    for text in ("the river " * 20_000, " " * 50_000, "the sea"):
        assert first_tokens(Counts(), text, 20) == lm.encode(text[:40_000])[:20]  # type: ignore[arg-type]
    assert max(seen) <= 50_000


PAYLOADS = ("", "[]", "1", "null", "{}", '{"failure": 3}', '{"scores": [1]}', DEEP)
MORE_PAYLOADS = ('{"scores": {"ES": "a"}}', '{"scores": {}, "bytes": "a"}', "\x00")


def test_damaged_payloads_and_newer_databases_are_refused(tmp_path: Path) -> None:
    from lmedit.compare.comparison import read_outcome

    for payload in (*PAYLOADS, *MORE_PAYLOADS):
        with pytest.raises(RunError, match="damaged"):
            read_outcome(Stored("k", "ft", "c", payload, None), "ft")
    with RunStore(tmp_path) as store:
        store.put(Stored("k", "ft", "c", "{}", 1.0))
    for column, value in (("seconds", "a"), ("payload", b"\xff"), ("seconds", float("inf"))):
        with sqlite3.connect(tmp_path / "run.sqlite") as database:
            database.execute(f"UPDATE results SET {column} = ?", (value,))
        database.close()
        with pytest.raises(RunError):
            read_results(tmp_path)
        with RunStore(tmp_path) as store, pytest.raises(RunError):
            store.all()
        with sqlite3.connect(tmp_path / "run.sqlite") as database:
            database.execute("UPDATE results SET seconds = 1, payload = '{}'")
        database.close()
    with sqlite3.connect(tmp_path / "run.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    for read in (read_results, RunStore):
        with pytest.raises(RunError, match="schema 99"):
            read(tmp_path)


def test_a_run_is_read_without_writing(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.put(Stored("k", "ft", "c", "{}", 1.0))
    (tmp_path / "workers").rmdir()
    before = sorted(os.listdir(tmp_path))
    assert [each.key for each in read_results(tmp_path)] == ["k"]
    assert sorted(os.listdir(tmp_path)) == before


def test_tensors_of_a_wrong_kind_of_facts(tmp_path: Path) -> None:
    from lmedit.storage.tensors import PATCH, load_tensors, save_tensors

    save_tensors(tmp_path / "a.safetensors", PATCH, {"a": torch.ones(1)}, {"a": 1})
    assert load_tensors(tmp_path / "a.safetensors", PATCH)[1] == {"a": 1}


KNOWS = r"this lmedit knows 1|too large"


def with_schema(path: Path, number: object) -> None:
    """Write *number* as the schema number of the file *path*."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": number}))
        return
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["schema"] = json.dumps(number)
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data[8 + size :])


@pytest.mark.parametrize("number", [2, 10**30, -1.5, "2", [2], True])
def test_a_file_of_a_newer_schema_is_one_line(lm: Lm, tmp_path: Path, number: object) -> None:
    """Ledgers, patches, preparations, statistics, tuned options and results."""
    from lmedit.edits.ledger import Ledger
    from lmedit.edits.model_folders import EditedModel, read_log, write_folder
    from lmedit.edits.patches import load_patch
    from lmedit.report.read import read_run
    from lmedit.storage.json_files import read_tuned_file

    model = EditedModel(lm, Ledger(lm), {"name": lm.name, "digest": lm.digest})
    site = lm.mlp_out(0)
    update = Update({site: Dense(torch.ones(lm.weight(site).shape))})
    model.ledger.keep(update)
    write_folder(model, tmp_path / "m")
    (patch,) = (path for path in (tmp_path / "m" / "lmedit-edits").iterdir() if len(path.name) > 60)
    (tmp_path / "results.json").write_text('{"model": {"name": "a"}, "rows": []}')
    (tmp_path / "tuned.json").write_text(json.dumps({"ft": {"options": {}}}))
    readers = {
        tmp_path / "m" / "lmedit-ledger.json": lambda path: read_log(path.parent),
        patch: load_patch,
        tmp_path / "results.json": lambda path: read_run(path.parent),
        tmp_path / "tuned.json": read_tuned_file,
    }
    assert json.loads((tmp_path / "m" / "lmedit-ledger.json").read_text())["schema"] == 1
    for path, read in readers.items():
        with_schema(path, 1)
        try:
            read(path)
        except LmeditError as error:
            assert "lmedit knows" not in str(error)  # noqa: PT017
        with_schema(path, number)
        with pytest.raises((LmeditError, ValueError), match=KNOWS) as told:
            read(path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (40,",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4\x000,), }",
        "{'descr': '<f4',\n  'fortran_order': False,\n 'shape': (1,), }",
        "{'descr': [('a', [[[",
        "('",
        "\t {",
        "{1: 2}",
        "{'descr': 'q'*9, 'x': ()}",
        "0" * 5000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }",
        "{'descr': '|V99999999999', 'fortran_order': False, 'shape': (), }",
    ],
)
def test_a_damaged_header_of_an_array_is_refused(tmp_path: Path, header: str) -> None:
    from lmedit.storage.arrays import read_npy

    told = header.encode("latin-1")
    data = b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told + bytes(64)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"header|holds|version"):
        read_npy(tmp_path / "a.npy", 3)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ValueError, match=r"header|holds|version|shape"):
        list(read_npz(tmp_path / "a.npz", ["a"], [(2, 2)]))
