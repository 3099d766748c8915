"""Files of ours: what is written comes back, and a damaged file is an error, never a surprise."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Checkpoint, Dense, Lm, LowRank, Prepared, Site, Update, load_patch, save_patch
from lmedit.errors import ArtifactError
from lmedit.preparation import load_prepared, save_prepared
from lmedit.storage import tensors as storage
from lmedit.storage.atomic import write_whole
from lmedit.storage.cache import cache_folder, key_of
from lmedit.storage.json_files import write_json
from lmedit.storage.tensors import CHECKPOINT, load_tensors, save_tensors
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

A, B = Site("h.0.mlp.weight", transposed=True), Site("h.1.mlp.weight")
FACTS = {"method": "nudge", "request": {"subject": "北京 🍕"}, "seconds": 0.25, "nothing": None}


def update() -> Update:
    draw = torch.Generator().manual_seed(0)
    low = LowRank(torch.randn(6, 2, generator=draw), torch.randn(2, 5, generator=draw))
    return Update({B: Dense(torch.randn(4, 3, generator=draw).double()), A: low}, {"steps": 7})


def prepared() -> Prepared:
    tensors = {"C": torch.eye(3, dtype=torch.float64), "counts": torch.arange(4)}
    return Prepared(tensors, {"layer": 2, "name": "é"})


def same(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_a_patch_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "edit.safetensors"
    save_patch(path, update(), FACTS)
    loaded, facts = load_patch(path)
    assert facts == FACTS
    assert dict(loaded.notes) == {"steps": 7}
    assert set(loaded.deltas) == {A, B}
    for site, delta in update().deltas.items():
        assert type(loaded.deltas[site]) is type(delta)
        for name, tensor in delta.tensors().items():
            assert same(loaded.deltas[site].tensors()[name], tensor)


def test_a_patch_of_many_sites_keeps_them_apart(tmp_path: Path) -> None:
    deltas = {Site(f"h.{i}.w"): Dense(torch.full((2, 2), float(i))) for i in range(12)}
    save_patch(tmp_path / "p", Update(deltas), {})
    loaded, _ = load_patch(tmp_path / "p")
    assert {s.parameter: d.values[0, 0].item() for s, d in loaded.deltas.items()} == {
        f"h.{i}.w": float(i) for i in range(12)
    }


@pytest.mark.parametrize(
    "delta",
    [
        lambda t: LowRank(t.T, t),
        lambda t: LowRank(t[:1].T, t[:1]),
        lambda t: Dense(t.T),
        lambda t: Dense(t[:, ::2]),
        lambda t: Dense(t.to(torch.bfloat16)),
        lambda t: Dense(t.clone().requires_grad_()),
    ],
    ids=[
        "factors share memory",
        "vectors share memory",
        "transposed",
        "strided",
        "bfloat16",
        "with gradient",
    ],
)
def test_a_patch_of_any_view_comes_back(tmp_path: Path, delta: Callable[..., Any]) -> None:
    whole = delta(torch.arange(12.0).reshape(2, 6))
    save_patch(tmp_path / "p", Update({A: whole}), {})
    assert same(load_patch(tmp_path / "p")[0].deltas[A].dense(), whole.dense().detach())


def test_two_sites_may_share_one_change(tmp_path: Path) -> None:
    change = Dense(torch.ones(2, 2))
    save_patch(tmp_path / "p", Update({A: change, B: change}), {})
    assert set(load_patch(tmp_path / "p")[0].deltas) == {A, B}


def test_what_is_prepared_comes_back_for_its_own_model(tmp_path: Path, lm: Lm) -> None:
    save_prepared(tmp_path / "c", prepared(), lm.digest)
    loaded = load_prepared(tmp_path / "c", lm)
    assert dict(loaded.facts) == dict(prepared().facts)
    assert set(loaded.tensors) == {"C", "counts"}
    assert all(same(loaded.tensors[name], t) for name, t in prepared().tensors.items())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="it lists the mappings")
def test_what_is_prepared_is_mapped_and_takes_no_memory_of_its_own(tmp_path: Path, lm: Lm) -> None:
    path = tmp_path / "factor.safetensors"
    save_prepared(path, Prepared({"factor": torch.eye(64)}, {}), lm.digest)
    factor = load_prepared(path, lm).tensors["factor"]
    within = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        within += [line] if start <= factor.data_ptr() < end else []
    assert [line.endswith(path.name) for line in within] == [True]


def test_nothing_prepared_comes_back_as_nothing(tmp_path: Path, lm: Lm) -> None:
    save_prepared(tmp_path / "c", Prepared(), lm.digest)
    assert load_prepared(tmp_path / "c", lm) == Prepared({}, {})


def test_what_is_prepared_for_another_model_is_refused(tmp_path: Path, lm: Lm) -> None:
    other = tiny_lm(seed=1)
    save_prepared(tmp_path / "c", prepared(), other.digest)
    with pytest.raises(ArtifactError) as caught:
        load_prepared(tmp_path / "c", lm)
    assert other.digest[:12] in str(caught.value)
    assert lm.digest[:12] in str(caught.value)
    assert "prepare again" in str(caught.value)


def test_a_checkpoint_is_kept_replaced_and_forgotten(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "deep" / "state")
    assert checkpoint.load() is None
    for done in (3, 5):
        checkpoint.save({"sum": torch.full((2,), float(done))}, {"done": done})
        tensors, facts = checkpoint.load()
        assert (tensors["sum"].tolist(), facts) == ([done, done], {"done": done})
    checkpoint.clear()
    assert checkpoint.load() is None
    checkpoint.clear()
    assert list(checkpoint.path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["prepared", "patch", "checkpoint"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, lm: Lm, kind: str) -> None:
    path = tmp_path / "file"
    save_tensors(path, kind, {"a": torch.zeros(2)}, {"base": lm.digest, "facts": {}})
    readers = {
        "prepared": lambda: load_prepared(path, lm),
        "patch": lambda: load_patch(path),
        "checkpoint": lambda: Checkpoint(path).load(),
    }
    del readers[kind]
    for wanted, read in readers.items():
        with pytest.raises(ArtifactError, match=f"not a {wanted} file"):
            read()


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, b"\xff" * 100, b"hello" * 99])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        load_patch(tmp_path / "file")


def test_a_plain_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "file")
    with pytest.raises(ArtifactError, match="not a patch file"):
        load_patch(tmp_path / "file")


@pytest.mark.parametrize("place", ["gone", "."])
def test_no_file_is_a_clear_error(tmp_path: Path, place: str) -> None:
    with pytest.raises(ArtifactError, match="no file"):
        load_patch(tmp_path / place)


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "edit.safetensors"
    save_patch(path, update(), FACTS)
    return path


def is_refused_or_harmless(path: Path) -> bool:
    """Whether the patch is refused; if not, it must be the very one that was saved."""
    try:
        loaded, facts = load_patch(path)
    except ArtifactError as error:
        return str(path) in str(error)
    assert facts == FACTS
    for site, delta in update().deltas.items():
        for name, tensor in delta.tensors().items():
            assert same(loaded.deltas[site].tensors()[name], tensor)
    return False


def header_of(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_every_truncation_is_refused(patch: Path) -> None:
    data = patch.read_bytes()
    for length in sorted({*range(0, len(data), 7), *range(len(data) - 9, len(data))}):
        patch.write_bytes(data[:length])
        assert is_refused_or_harmless(patch), length


def test_bytes_behind_the_end_are_refused(patch: Path) -> None:
    patch.write_bytes(patch.read_bytes() + b"\0")
    assert is_refused_or_harmless(patch)


def test_every_flipped_byte_of_the_data_is_refused(patch: Path) -> None:
    data = patch.read_bytes()
    for place in range(header_of(data), len(data)):
        patch.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert is_refused_or_harmless(patch), place


def test_flipped_bits_of_the_header_are_refused_or_harmless(patch: Path) -> None:
    data = patch.read_bytes()
    harmless = 0
    for place in range(header_of(data)):
        flipped = data[place] ^ (1 << place % 8)
        patch.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        harmless += not is_refused_or_harmless(patch)
    assert harmless < 20


def test_random_damage_is_refused_or_harmless(patch: Path) -> None:
    data, draw = patch.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(damaged))
            cut = place + draw.choice([1, 1, 1, 2, 30])
            damaged[place:cut] = draw.choice([b"", draw.randbytes(1), draw.randbytes(5), b'"'])
        patch.write_bytes(bytes(damaged))
        assert is_refused_or_harmless(patch) or bytes(damaged) == data


def test_damage_of_what_is_prepared_is_an_artifact_error(tmp_path: Path, lm: Lm) -> None:
    path, draw = tmp_path / "c", random.Random(1)
    save_prepared(path, prepared(), lm.digest)
    data = path.read_bytes()
    for _ in range(100):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + draw.randbytes(1) + data[place + 1 :])
        if path.read_bytes().strip() == data.strip():
            continue
        with pytest.raises(ArtifactError):
            load_prepared(path, lm)
        with pytest.raises(ArtifactError):
            Checkpoint(path).load()


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file"
    with write_whole(target) as part:
        part.write_text("new")
        assert part.stat().st_dev == target.parent.stat().st_dev
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_written_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_patch(tmp_path / "patch", update(), FACTS)
    assert (tmp_path / "patch").stat().st_mode == (tmp_path / "plain").stat().st_mode


def write_half(part: Path, error: type[BaseException]) -> None:
    part.write_text("half")
    raise error("no")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    expected = ArtifactError if error is OSError else error
    with pytest.raises(expected), write_whole(target) as part:
        write_half(part, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_said_in_json_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    write_json(target, {"a": "é"})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_an_artifact_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails half-way."""
    resource = pytest.importorskip("resource")
    target = tmp_path / "edit"
    save_patch(target, update(), FACTS)
    old = target.read_bytes()
    large = Update({A: Dense(torch.zeros(400, 400))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ArtifactError, match="cannot write"):
            save_patch(target, large, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == old
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("below", ["file.safetensors", "folder/file.safetensors"])
def test_a_folder_that_cannot_be_written_is_an_artifact_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "regular").write_text("a file, no folder")
    path = tmp_path / "regular" / below
    writers: list[Callable[[], None]] = [
        lambda: save_patch(path, update(), {}),
        lambda: save_prepared(path, prepared(), "base"),
        lambda: Checkpoint(path).save({}, {}),
        lambda: write_json(path, {}),
    ]
    for write in writers:
        with pytest.raises(ArtifactError, match=r"cannot write .*regular"):
            write()
    assert list(tmp_path.iterdir()) == [tmp_path / "regular"]


def test_a_folder_in_the_files_place_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "edit" / "inner").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="cannot write"):
        save_patch(tmp_path / "edit", update(), {})
    assert list(tmp_path.iterdir()) == [tmp_path / "edit"]


def test_keys_depend_on_every_part_and_not_on_their_order() -> None:
    key = key_of(method="a", options={"x": 1, "y": None})
    assert key == key_of(options={"y": None, "x": 1}, method="a")
    others = [{"x": 2, "y": None}, {"x": 1}, {"x": "1", "y": None}, {"x": 1, "y": 0}]
    assert len({key, *(key_of(method="a", options=o) for o in others)}) == 5
    assert len(key) == 64


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("LMEDIT_CACHE", "")
    assert cache_folder().name == "lmedit"


def test_facts_survive_any_text(tmp_path: Path) -> None:
    facts = {"text": 'quotes " and \\ and \n and \u2028 and 👩\u200d👧', "list": [1, [2.5, None]]}
    save_tensors(tmp_path / "f", "patch", {}, facts)
    assert load_tensors(tmp_path / "f", "patch") == ({}, facts)


def test_the_same_edit_is_the_same_bytes(tmp_path: Path) -> None:
    written = set()
    for number in range(12):
        save_patch(tmp_path / f"{number}", update(), FACTS)
        written.add((tmp_path / f"{number}").read_bytes())
        assert load_patch(tmp_path / f"{number}")[1] == FACTS
    assert len(written) == 1


def test_a_file_that_another_process_replaces_meanwhile_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors opens a file twice: here the second time finds another file."""
    path, other = tmp_path / "state.safetensors", tmp_path / "other.safetensors"
    save_tensors(path, CHECKPOINT, {"a": torch.zeros(3)}, {"long": "x" * 100})
    save_tensors(other, CHECKPOINT, {"a": torch.ones(3)}, {})
    opened = storage.safe_open

    def replaced(name: Path, **given: Any) -> Any:
        file = opened(name, **given)
        if other.exists():
            os.replace(other, name)
        return file

    monkeypatch.setattr(storage, "safe_open", replaced)
    found, facts = load_tensors(path, CHECKPOINT)
    assert (found["a"].tolist(), facts) in [([0.0] * 3, {"long": "x" * 100}), ([1.0] * 3, {})]
    assert not other.exists()


def test_a_damaged_file_is_refused_once(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, CHECKPOINT, {"a": torch.zeros(3)}, {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="fails its checksum"):
        load_tensors(path, CHECKPOINT)
