"""Observers see what hooks are given and give, and change and break nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result
from made_plugins import good
from small_world import FACT

from lmedit.errors import BrokenPluginError
from lmedit.observers import GROUP, observe
from lmedit.registry import BLOCK_VARIABLE, load_file, module_of

if TYPE_CHECKING:
    from made_plugins import Install

Run = Callable[..., Result]
TIMER = Path(__file__).parents[2] / "docs" / "examples" / "lmedit_timer.py"
HEAD = "from lmedit import hookimpl\nseen = []\n"


def observer(*body: str, hook: str = "edit_compute", arguments: str = "request") -> str:
    lines = "".join(f"    {line}\n" for line in body)
    return f"{HEAD}@hookimpl(wrapper=True)\ndef {hook}({arguments}):\n{lines}"


@pytest.fixture
def patched(lmedit: Run, model: Path, tmp_path: Path) -> Callable[..., tuple[Result, bytes]]:
    """Edit a fact with FT, watched by observers; the result and the patch' tensors."""

    def edit(*sources: str) -> tuple[Result, bytes]:
        flags: list[object] = []
        for number, source in enumerate(sources):
            (tmp_path / f"observer{number}.py").write_text(source)
            flags += ["--observe", tmp_path / f"observer{number}.py"]
        flags += ["-O", "out.safetensors", "--force", "--json", "--no-isolate"]
        done = lmedit("edit", "ft", *FACT, "-m", model, *flags)
        content = Path("out.safetensors").read_bytes() if done.exit_code == 0 else b""
        return done, content[8 + int.from_bytes(content[:8], "little") :]

    return edit


Patched = Callable[..., tuple[Result, bytes]]


def test_the_timer_tells_seconds_of_every_hook(lmedit: Run, model: Path, cases: Path) -> None:
    def counts(*flags: object) -> dict[str, int]:
        done = lmedit(
            *("compare", "ft", "--cases", cases, "-m", model, "--json"),
            *(*flags, "--observe", TIMER, "--no-isolate"),
        )
        assert json.loads(done.stdout)["rows"][1]["n_failed"] == 0
        told = re.findall(r"^(edit_\w+): \d+\.\d{3} s$", done.stderr, re.MULTILINE)
        return {name: told.count(name) for name in told}

    computed = {"edit_locate": 3, "edit_compute_many": 1}
    assert counts() == computed  # scored beside the weights
    assert counts("--dtype", "bfloat16") == {**computed, "edit_apply": 3, "edit_revert": 3}


def test_the_documents_observer_works(patched: Patched) -> None:
    page = (TIMER.parents[1] / "reference" / "hooks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done, watched = patched(code)
    assert re.search(r"^The tower \d+\.\d+$", done.stderr, re.MULTILINE)
    assert watched == patched()[1]


def test_watching_does_not_make_a_hook_out_of_one_that_is_left_out(tmp_path: Path) -> None:
    from lmedit.guards.hooks import implements

    (tmp_path / "alone.py").write_text(good("alone"))
    loaded = load_file(tmp_path / "alone.py")
    observe(loaded, module_of(TIMER))
    assert not implements(loaded.manager, "edit_compute_many")
    assert implements(loaded.manager, "edit_compute")


def test_an_observer_sees_arguments_results_and_errors(
    lmedit: Run, tmp_path: Path, model: Path, cases: Path
) -> None:
    (tmp_path / "sees.py").write_text(
        observer(
            "try:",
            "    update = yield",
            "    print('got', type(update).__name__)",
            "except ZeroDivisionError as error:",
            "    print('raised', error)",
            "    raise",
            "finally:",
            "    print('of', request.subject)",
            "return update",
        )
    )
    broken = good("bad", **{"    (site,) = loc": "    1 / 0\n    (site,) = loc"})
    (tmp_path / "bad.py").write_text(broken)
    (tmp_path / "fine.py").write_text(good("fine"))
    done = lmedit(
        "compare",
        "fine",
        "bad",
        "--plugin",
        tmp_path / "fine.py",
        "--plugin",
        tmp_path / "bad.py",
        "--cases",
        cases,
        "-m",
        model,
        "--json",
        "--no-isolate",
        "--observe",
        tmp_path / "sees.py",
    )
    rows = {row["method"]: row["n_failed"] for row in json.loads(done.stdout)["rows"]}
    assert rows == {"base": 0, "fine": 0, "bad": 3}
    assert done.stderr.count("got Update") == 3
    assert done.stderr.count("raised division by zero") == 3
    assert done.stderr.count("of The tower") == 2


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (("raise RuntimeError('at once')", "yield"), "RuntimeError: at once"),
        (("yield", "raise RuntimeError('afterwards')"), "RuntimeError: afterwards"),
        (("yield", "raise SystemExit(3)"), "SystemExit: 3"),
        (("if False:", "    yield"), "it must yield once"),
        (("yield", "yield"), "it must yield once"),
        (("yield", "return None"), None),
        (("yield", "return 'another result'"), None),
    ],
    ids=["before", "after", "exit", "no yield", "two yields", "returns None", "another result"],
)
def test_a_broken_observer_changes_and_breaks_nothing(
    patched: Patched, body: tuple[str, ...], complaint: str | None
) -> None:
    _, alone = patched()
    done, watched = patched(observer(*body, hook="edit_compute"))
    assert done.exit_code == 0
    assert watched == alone
    assert json.loads(done.stdout)["method"] == "ft"
    if complaint is None:
        assert "observer" not in done.stderr
    else:
        assert (
            f"observer 'observer0.py', edit_compute: {complaint}; the edit continues" in done.stderr
        )


def test_the_same_observer_may_watch_twice(lmedit: Run, model: Path) -> None:
    flags = ("--observe", TIMER, "--observe", TIMER, "--force", "--no-isolate")
    done = lmedit("edit", "ft", *FACT, "-m", model, *flags)
    assert done.exit_code == 0
    assert done.stderr.count("edit_compute:") == 2


def test_it_complains_once(lmedit: Run, tmp_path: Path, model: Path, cases: Path) -> None:
    (tmp_path / "bad.py").write_text(observer("yield", "1 / 0", hook="edit_locate", arguments=""))
    done = lmedit(
        "compare",
        "ft",
        "--cases",
        cases,
        "-m",
        model,
        "--no-isolate",
        *("--observe", tmp_path / "bad.py"),
    )
    assert done.exit_code == 0
    assert done.stderr.count("observer 'bad.py'") == 1


def test_an_observer_that_hides_an_error_hides_nothing(
    lmedit: Run, tmp_path: Path, model: Path
) -> None:
    (tmp_path / "hides.py").write_text(
        observer("try:", "    yield", "except Exception:", "    pass")
    )
    (tmp_path / "bad.py").write_text(good("bad", **{"    (site,)": "    1 / 0\n    (site,)"}))
    done = lmedit(
        "edit",
        "bad",
        *FACT,
        "-m",
        model,
        "--plugin",
        tmp_path / "bad.py",
        "--observe",
        tmp_path / "hides.py",
    )
    assert done.exit_code == 1
    assert "edit_compute raised ZeroDivisionError" in done.stderr


def test_writing_into_a_result_is_the_observers_error(patched: Patched) -> None:
    done, _ = patched(
        observer(
            "update = yield",
            "for delta in update.deltas.values():",
            "    delta.values.mul_(2)",
            "return update",
        )
    )
    assert done.exit_code == 1
    assert "observer 'observer0.py': it changed the result of edit_compute" in done.stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (f"{HEAD}@hookimpl\ndef edit_compute():\n    return 1\n", "must be a @hookimpl(wrapper"),
        (HEAD, "it has no hook to watch"),
        (observer("yield", hook="edit_comput"), "unknown hook 'edit_comput'"),
        (observer("yield", arguments="requst"), "requst"),
        (observer("return 1"), "wrapper=True"),
        ("raise OSError('no clock')", "OSError: no clock"),
    ],
    ids=["no wrapper", "nothing", "misspelt hook", "misspelt argument", "no generator", "import"],
)
def test_what_is_no_observer_is_named_before_anything_is_done(
    patched: Patched, source: str, reason: str
) -> None:
    done, _ = patched(source)
    assert done.exit_code == 1
    assert "observer0.py" in done.stderr
    assert reason in done.stderr
    assert not Path("out.safetensors").exists()


def test_an_installed_observer_watches_where_it_is_named(
    install: Install, lmedit: Run, model: Path
) -> None:
    install("watch", TIMER.read_text(), group=GROUP)
    quiet = lmedit("edit", "ft", *FACT, "-m", model)
    assert "edit_compute:" not in quiet.stderr
    watched = lmedit(
        "edit",
        "ft",
        *FACT,
        "-m",
        model,
        "--observe",
        "watch",
        "--no-isolate",
        env={BLOCK_VARIABLE: "ft"},
    )
    assert "edit_compute:" in watched.stderr
    unknown = lmedit("edit", "ft", *FACT, "-m", model, "--observe", "wacth")
    assert unknown.exit_code == 1
    assert "no observer 'wacth' among watch; did you mean 'watch'?" in unknown.stderr


def test_one_that_cannot_be_imported_is_named(install: Install, lmedit: Run, model: Path) -> None:
    install("watch", "raise OSError('no clock')", group=GROUP)
    done = lmedit("edit", "ft", *FACT, "-m", model, "--observe", "watch")
    assert done.exit_code == 1
    assert "observer 'watch': OSError: no clock" in done.stderr


def test_in_python_a_module_or_any_object_observes(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(good("alone"))
    loaded: Any = load_file(tmp_path / "alone.py")
    with pytest.raises(BrokenPluginError, match="observer 'mine': it has no hook"):
        observe(loaded, object(), "mine")
