"""What the documents say is what the code does."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmedit import hookspecs
from lmedit.registry import load_file
from lmedit.testing import EditorContract

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOOKS_PAGE = DOCS / "reference" / "hooks.md"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("edit_"))
NUDGE = DOCS / "examples" / "lmedit_nudge.py"


def module_from(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_heading_with_its_arguments(hook: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"### {hook}({arguments})" in HOOKS_PAGE.read_text(encoding="utf-8")


def test_hooks_page_has_no_other_hooks() -> None:
    page = HOOKS_PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (edit_\w+)", page, re.MULTILINE)) == HOOKS


def test_the_laws_are_the_same_in_code_and_docs() -> None:
    def laws(text: str) -> list[str]:
        found = re.findall(r"^(\d+)\. (.+?)(?=\n\d+\. |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        return [" ".join(law.split()) for _, law in found]

    page = HOOKS_PAGE.read_text(encoding="utf-8").partition("## Laws")[2]
    assert laws(page.strip()) == laws((hookspecs.__doc__ or "").strip())
    assert len(laws(page)) == 14


def test_every_law_has_its_test_in_the_contract() -> None:
    numbers = re.findall(r"test_law_(\d+)", " ".join(vars(EditorContract)))
    assert sorted(map(int, numbers)) == list(range(1, 15))


def test_the_command_page_is_what_the_commands_say() -> None:
    page = module_from(DOCS / "make_cli_page.py").page()
    assert (DOCS / "reference" / "cli.md").read_text(encoding="utf-8") == page


def test_the_tutorials_plugin_is_the_tested_file() -> None:
    page = (DOCS / "tutorials" / "writing-a-method.md").read_text(encoding="utf-8")
    code = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in code] == ["examples/lmedit_nudge.py"]
    for name, text in code:
        assert (DOCS / name).read_text(encoding="utf-8") == text


class TestNudge(EditorContract):
    """The tutorial's plugin keeps the laws."""

    method = "nudge"
    plugin = module_from(NUDGE)


def test_nudge_loads_as_a_file() -> None:
    assert load_file(NUDGE).name == "nudge"


def test_changelog_begins_with_unreleased() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[2] == "## Unreleased"


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readmes_plugin_is_a_working_method(tmp_path: Path) -> None:
    (code,) = (block for block in readme_blocks("python") if "lmedit_nudge" in block)
    (tmp_path / "nudge.py").write_text(code, encoding="utf-8")
    assert load_file(tmp_path / "nudge.py").name == "nudge"
    assert len([line for line in code.splitlines() if line.strip()]) < 20


@pytest.mark.slow
def test_the_readmes_python_runs_and_the_base_is_back(
    demo_is_prepared: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    (code,) = (block for block in readme_blocks("python") if "load_lm" in block)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    edited, base = capsys.readouterr().out.splitlines()
    assert (edited.strip(), base.strip()) == ("Rome", "Paris")
    lm = names["lm"]
    assert lm.weights_digest() == lm.digest


def test_the_readmes_commands_are_tasks_of_dev_py() -> None:
    tasks = re.findall(r"python3 dev\.py (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    dev = module_from(ROOT / "dev.py")
    assert tasks == ["demo", "test", "real"]
    assert all(callable(getattr(dev, task)) for task in tasks)


def test_every_measure_is_explained_as_it_is() -> None:
    from lmedit.compare.measures import MEASURES

    text = (ROOT / "docs" / "explanation" / "comparing.md").read_text(encoding="utf-8")
    page = text.replace("&#124;", "|")
    for known in MEASURES.values():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{known.name}` |"))
        assert known.meaning in line
        assert known.protocol in line
