"""A signal ends all processes, and every end is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Lm
from lmedit.errors import LmeditError, ModelError, RequestError
from lmedit.models.devices import device_of
from lmedit.storage.atomic import PREFIX
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = [sys.executable, "-c", "from lmedit.cli import main; main()"]
WORKERS = """
import sys, time
from functools import partial
from pathlib import Path
from lmedit.cli.endings import signals_end
from lmedit.cli.workers import worker_processes

def work(place):
    import os
    Path(place, "child").write_text(str(os.getpid()))
    while True:
        pass

if __name__ == "__main__":
    with signals_end(), worker_processes(2, partial(work, sys.argv[1])):
        while True:
            time.sleep(0.02)
"""


def alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for(what: Any, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_their_parent(tmp_path: Path, number: int) -> None:
    script = tmp_path / "script.py"
    # Under nohup a process ignores SIGHUP, as it should; so the script asks for the default.
    script.write_text(f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n{WORKERS}")
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=-3)
    place = tmp_path / "child"
    try:
        assert wait_for(lambda: place.exists() and place.read_text())
        child = int(place.read_text())
        parent.send_signal(number)
        assert wait_for(lambda: not alive(child))
    finally:
        parent.kill()
        parent.wait(60)


IN_A_HOOK = """
import sys, time
from functools import partial
from pathlib import Path
from lmedit.cli.workers import worker_processes

def work(place):
    from lmedit import editor, Method, hookimpl
    from lmedit.registry import register
    from lmedit.pipeline import ready
    from lmedit.tiny import tiny_lm
    from lmedit.types import Request

    class Long:
        @hookimpl
        def edit_describe(self):
            return Method("long", "none")

        @hookimpl
        def edit_locate(self):
            Path(place, "child").write_text("here")
            try:
                time.sleep(500)
            except KeyboardInterrupt:
                Path(place, "told").write_text("stopped")
                raise

    loaded = register(Long(), name=None, distribution="long", version="1")
    lm = tiny_lm()
    try:
        ready(loaded, lm, loaded.method.options()).compute(
            Request(prompt="{} is", subject="a", target_new="b")
        )
    except Exception as error:
        Path(place, "failure").write_text(repr(error))

if __name__ == "__main__":
    place = Path(sys.argv[1])
    with worker_processes(2, partial(work, place)):
        while not (place / "child").exists():
            time.sleep(0.02)
"""


def test_a_worker_that_is_stopped_inside_a_hook_ends_and_stores_no_failure(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(IN_A_HOOK)
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=300)
    assert (tmp_path / "told").read_text() == "stopped"
    assert not (tmp_path / "failure").exists()


def run(*command: str, shell: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """Run lmedit; *shell* is what a shell adds, such as a redirection."""
    line = ' "$@" '.join(["exec", shell])
    return subprocess.run(
        ["/bin/sh", "-c", line, "sh", *PROGRAM, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        **more,
    )


ENDS: Sequence[tuple[list[str], str, int, dict[str, str]]] = [
    (["show", "ft"], ">/dev/full", 1, {}),
    (["show", "ft"], "<&- >&-", 0, {}),
    (["edit", "ft", "--fact", "-"], "<&-", 1, {}),
    (["log", "x" * 300], "", 2, {}),
    (["edit", "ft", "-m", "x" * 300, "--prompt", "a", "--target", "b"], "", 1, {}),
    (["compare", "--limit", str(2**64)], "", 2, {}),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: " ".join([*end[0], end[1]])[:40])
def test_every_end_is_one_line(end: Any) -> None:
    command, shell, code, variables = end
    if "/dev/full" in shell and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = run(*command, shell=shell, env={**os.environ, **variables})
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_narrow_stdout_takes_every_text(tmp_path: Path) -> None:
    (tmp_path / "lmedit-ledger.json").write_text('{"a": 1}')
    variables = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = run("log", str(tmp_path), "--json", "\u4e2d", env=variables)
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from lmedit.actions import scaffold
    from lmedit.cli import main

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(scaffold, "_rename", full)
    told = CliRunner().invoke(main, ["new", "later", "-O", str(tmp_path / "a")])
    assert (told.exit_code, told.output.count("\n")) == (1, 1)
    assert not list(tmp_path.glob(f"{PREFIX}*"))


@pytest.mark.parametrize("name", ["meta", "hpu", "no", "cuda:99", ""])
def test_a_device_without_values_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no device"):
        device_of(name)


def test_a_text_of_any_length_is_refused_in_words() -> None:
    lm = tiny_lm()
    for count in (0, 1, lm.max_positions, lm.max_positions + 1):
        text = " ".join(["a"] * count) if count else ""
        try:
            lm.next_probabilities(text)
        except RequestError as error:
            assert "tokens" in str(error)  # noqa: PT017
        else:
            assert 0 < len(lm.encode(text)) <= lm.max_positions


def test_a_continuation_at_the_last_position_ends() -> None:
    from lmedit.metrics.generate import greedy

    lm = tiny_lm()
    for length in range(lm.max_positions - 8, lm.max_positions + 2):
        text = lm.decode(lm.encode("the sea and " * 60)[:length])
        try:
            greedy(lm, [text], 4)
        except LmeditError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_models_are_unwrapped_or_refused() -> None:
    lm = tiny_lm()
    assert Lm(torch.compile(lm.model), lm.tokenizer).model is lm.model  # type: ignore[arg-type]
    lm.model.compile()
    with pytest.raises(ModelError, match="compiled"):
        Lm(lm.model, lm.tokenizer)
