"""Commands of one method: what the method of another project does to its process stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from small_world import record, save_model

from lmedit.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

FACT = ("--prompt", "{} is in", "--subject", "The tower", "--target", "the sea")
TOY = """
import os, sys, threading, time, torch
from lmedit import Dense, Location, Method, Options, Prepared, Probed, Update, hookimpl
{at_import}

class Own(Options):
    size: float = 1.0

    @classmethod
    def tries(cls, lm):
        return {{"size": [1.0, 2.0]}}

@hookimpl
def edit_describe():
    return Method("toy", "none", Own, prepares_on="text")

@hookimpl
def edit_prepare(lm):
    {prepare}
    return Prepared()

@hookimpl
def edit_locate(lm):
    {locate}
    return Location((lm.mlp_out(1),))

@hookimpl
def edit_plan(lm):
    {plan}
    return {{}}

@hookimpl
def edit_compute(lm, location, request, options):
    {compute}
    site, = location.sites
    return Update({{site: Dense(options.size * torch.ones(lm.weight(site).shape))}})
"""
PARTS = ("at_import", "prepare", "locate", "plan", "compute")
LEAVES = "os._exit(3)"
WAYS = {
    "it leaves": (LEAVES, "its process ended with code 3"),
    "it is killed": ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL"),
    "it closes every file": ("os.closerange(3, 99); os._exit(0)", "its process ended with code 0"),
    "it never returns to Python": ("sum(range(10**14))", "its process ended with code 1"),
    "it exits": ("sys.exit(5)", "raised SystemExit: 5"),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "tiny", seed=0)
    (tmp_path / "text.txt").write_text("The tower is in the sea. The boat is in the city.\n" * 9)
    return tmp_path


def toy(**parts: str) -> None:
    Path("toy.py").write_text(TOY.format(**{**dict.fromkeys(PARTS, "pass"), **parts}))


def lmedit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def method(command: str, *more: object) -> Result:
    flags = ("-m", "tiny", "--plugin", "toy.py", "--corpus", "text.txt")
    fact = FACT if command in {"edit", "locate"} else ()
    return lmedit(command, "toy", *fact, *flags, *more)


def is_one_line(done: Result, words: str) -> None:
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert words in errors[0]
    assert "toy" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_edit_that_ends_its_process_is_one_line(way: str) -> None:
    act, words = WAYS[way]
    toy(compute=act)
    before = set(os.listdir())
    limit = ("--edit-timeout", "1") if "never" in way else ()
    is_one_line(method("edit", "--json", "--force", "-O", "p.safetensors", *limit), words)
    assert set(os.listdir()) - before <= {"cache"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "command"),
    [
        ("prepare", ("prepare",)),
        ("locate", ("locate", "--json")),
        ("at_import", ("edit", "--json")),
        ("at_import", ("locate",)),
        ("at_import", ("prepare",)),
    ],
)
def test_every_command_survives_its_method(part: str, command: tuple[str, ...]) -> None:
    toy(**{part: LEAVES})
    is_one_line(method(*command), "method 'toy': its process ended with code 3")


@pytest.mark.slow
@pytest.mark.parametrize("late", [True, False])
def test_a_process_that_ends_after_its_patch_leaves_none(late: bool) -> None:
    """The process that asks writes the patch when the answer is there; no note tells of it."""
    ends = "sys.modules['lmedit.cli.edit'].say = lambda *_: os._exit(3)"
    toy(compute=ends if late else "pass")
    before = set(os.listdir())
    done = method("edit", "--json", "--force", "-O", "p.safetensors")
    if late:
        is_one_line(done, "its process ended with code 3")
        assert set(os.listdir()) - before <= {"cache"}
        assert "the edit is in" not in done.stderr
    else:
        assert done.exit_code == 0, done.stderr
        assert set(os.listdir()) - before <= {"cache", "p.safetensors"}
        told = lmedit("show", "p.safetensors", "--json")
        assert json.loads(told.stdout)["method"] == "toy"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prepare", "edit", "compare"])
def test_an_endless_preparation_has_a_limit(place: Path, command: str) -> None:
    toy(prepare="[None for _ in iter(int, 1)]")
    (place / "cases.json").write_text(json.dumps([record(0)]))
    more = ("--cases", "cases.json") if command == "compare" else ()
    done = method(command, "--prepare-timeout", "1", *more)
    is_one_line(done, "edit_prepare raised TimeUpError: it took more than 1 s")
    assert "--prepare-timeout" in done.stderr


def test_show_plan_and_check_survive_too() -> None:
    toy(at_import=LEAVES)
    for command in (("show", "toy"), ("plan", "toy", "-m", "tiny"), ("check", "toy", "-m", "tiny")):
        is_one_line(lmedit(*command, "--plugin", "toy.py"), "its process ended with code 3")
    is_one_line(lmedit("check", "toy.py", "-m", "tiny"), "its process ended with code 3")
    toy(plan=LEAVES)
    is_one_line(lmedit("plan", "toy", "-m", "tiny", "--plugin", "toy.py"), "code 3")


@pytest.mark.slow
def test_an_edit_is_the_same_in_a_process_of_its_own() -> None:
    toy()
    given = ("--json", "--force", "-O", "p.safetensors")
    found = []
    for way in ("--isolate", "--no-isolate"):
        done = method("edit", *given, way)
        assert done.exit_code == 0, done.stderr
        told = json.loads(done.stdout)
        del told["seconds"]
        facts = json.loads(lmedit("show", "p.safetensors", "--json").stdout)
        found.append((told, {n: v for n, v in facts.items() if n != "seconds"}))
    assert found[0] == found[1]
    ours = lmedit("edit", "ft", *FACT, "-m", "tiny", "-o", "layer", "1", *given, "--isolate")
    same = lmedit("edit", "ft", *FACT, "-m", "tiny", "-o", "layer", "1", *given)
    told = [{**json.loads(each.stdout), "seconds": 0} for each in (ours, same)]
    assert told[0] == told[1]


def test_a_refused_edit_and_wrong_usage_end_as_in_this_process() -> None:
    toy()
    for more in (("--no-isolate",), ("--isolate",)):
        done = method("edit", "-O", "p.safetensors", *more)
        assert done.exit_code == 1
        assert "verdict" in done.stdout
        assert "no patch is written without --force" in done.stderr
        assert not Path("p.safetensors").exists()
        wrong = lmedit("edit", "toy", "-m", "tiny", "--plugin", "toy.py", "--limit", "3", *more)
        assert wrong.exit_code == 2
        assert "Usage: " in wrong.stderr
        assert "--limit is for --facts" in wrong.stderr


def test_a_fact_of_stdin_and_its_text_arrive() -> None:
    toy()
    fact = json.dumps({"prompt": "{} is in", "subject": "Zoë", "target_new": "the sea"})
    given = ["edit", "toy", "-m", "tiny", "--plugin", "toy.py", "--corpus", "text.txt"]
    done = CliRunner().invoke(main, [*given, "--force", "--json", "--fact", "-"], input=fact)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["request"]["subject"] == "Zoë"


@pytest.mark.slow
def test_what_threads_print_and_what_lasts_is_not_in_the_json(warm: tuple[str, ...]) -> None:
    noise = "threading.Thread(target=lambda: (print('x'), os.write(1, b'y'))).start()"
    wait = "threading.Thread(target=time.sleep, args=(3600,)).start()"  # it never ends by itself
    toy(compute=f"print('z'); os.system('echo w'); {noise}; {wait}")
    flags = ["-m", "tiny", "--plugin", "toy.py", "--corpus", "text.txt", "--force", "--json"]
    short = "from lmedit.cli import processes; processes.SECONDS_TO_LEAVE = 0.5"
    run = [*warm, "-c", f"{short}; from lmedit.cli import main; main()"]
    done = subprocess.run(
        [*run, "edit", "toy", *FACT, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "toy"


def test_torchs_own_functions_stay_for_the_others() -> None:
    toy(at_import="torch.nn.functional.layer_norm = lambda *_, **__: 1 / 0")
    done = method("edit")
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr
    ours = lmedit("edit", "ft", *FACT, "-m", "tiny", "-o", "layer", "1", "--force")
    assert ours.exit_code == 0, ours.stderr


def test_an_observer_that_ends_its_process_is_one_line() -> None:
    Path("eye.py").write_text(
        "import os\nfrom lmedit import hookimpl\n\n@hookimpl(wrapper=True)\n"
        "def edit_compute():\n    os._exit(4)\n    yield\n"
    )
    flags = ("-m", "tiny", "-o", "layer", "1", "--observe", "eye.py")
    done = lmedit("edit", "ft", *FACT, *flags)
    assert done.exit_code == 1
    assert done.stdout == ""
    line = "Error: method 'ft' or observer eye.py: its process ended with code 4"
    assert done.stderr.splitlines()[-1].startswith(line)


@pytest.mark.slow
def test_a_sweep_counts_the_case_that_ends_its_process(place: Path) -> None:
    cases = [record(0), record(1, "A small boat"), record(2, "Nobody in the city")]
    (place / "cases.json").write_text(json.dumps(cases))
    toy(compute=f"{LEAVES} if 'boat' in request.text else None")
    done = method("tune", "--cases", "cases.json", "--json", "--run", "run")
    assert done.exit_code == 0, done.output
    (first, *_) = json.loads(done.stdout)["evidence"]["final"]
    assert (first["n"], first["n_failed"]) == (3, 1)
    assert "another process goes on" in done.stderr
    toy(compute=LEAVES)
    done = method("tune", "--cases", "cases.json")
    is_one_line(done, "its process ended with code 3")
    assert not any(Path("runs").iterdir())


def regime(kind: str, **more: object) -> dict[str, Any]:
    flags = [part for name, value in more.items() for part in (f"--{name}", str(value))]
    done = lmedit(
        *("compare", "toy", "-m", "tiny", "--plugin", "toy.py", "--corpus", "text.txt"),
        *("--cases", "cases.json", "--heldout", "text.txt", "--regime", kind, "--json"),
        *("--run", f"run-{kind}", *flags),
    )
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch", "sequential"])
def test_in_a_pile_the_record_during_which_a_process_ends_fails_alone(
    place: Path, kind: str
) -> None:
    cases = [record(0), record(1, "A small boat"), record(2, "Nobody in the city")]
    (place / "cases.json").write_text(json.dumps(cases))
    toy(
        compute=f"options = options.model_copy(update=dict(size=1e-3)); "
        f"{LEAVES} if 'boat' in request.text else None"
    )
    found = regime(kind, sizes="1,3")
    row = found["rows"][1]
    assert (row["n"], row["n_failed"], row["size"]) == (3, 1, 3)
    (failure,) = row["failures"]
    assert "its process ended with code 3" in failure
    assert [(point["size"], point["n_failed"]) for point in found["curve"]] == [(1, 0), (3, 1)]


@pytest.mark.slow
def test_a_pile_keeps_the_sizes_that_were_finished(place: Path) -> None:
    """A method that ends its process at every later fact: the first sizes stay, as measured."""
    cases = [record(n, f"The boat {n}" if n else "The tower") for n in range(8)]
    (place / "cases.json").write_text(json.dumps(cases))
    act = "options = options.model_copy(update=dict(size=1e-3)); "
    toy(compute=act + f"{LEAVES} if 'boat' in request.text else None")
    found = regime("sequential", sizes="1,8")
    assert [(point["size"], point["n_failed"]) for point in found["curve"]] == [(1, 0), (8, 8)]
    assert [point["perplexity"] is None for point in found["curve"]] == [False, True]
    assert all("its process ended" in failure for failure in found["rows"][1]["failures"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_methods_process_too(
    number: signal.Signals, warm: tuple[str, ...]
) -> None:
    toy(compute="open('pid', 'w').write(str(os.getpid())); time.sleep(1000)")
    flags = ["-m", "tiny", "--plugin", "toy.py", "--corpus", "text.txt", "-O", "p.safetensors"]
    own = "import os; open('command', 'w').write(str(os.getpid()))"
    run = [*warm, "-c", f"{own}; from lmedit.cli import main; main()"]
    command = subprocess.Popen([*run, "edit", "toy", *FACT, *flags], stderr=subprocess.PIPE)
    wait_until(lambda: Path("pid").is_file() and Path("pid").read_text() != "")
    os.kill(int(Path("command").read_text()), number)
    command.communicate(timeout=60)
    assert command.returncode != 0
    process = int(Path("pid").read_text())
    wait_until(lambda: not is_running(process))
    assert not Path("p.safetensors").exists()


def is_running(process: int) -> bool:
    """Whether *process* runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)
