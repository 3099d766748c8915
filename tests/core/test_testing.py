"""The contract bites: a plugin that breaks a law fails that law's test, and no other."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

WRONG = Path(__file__).with_name("wrong_plugins.py")
CLASSES = [
    node.name
    for node in ast.parse(WRONG.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name.startswith("Test")
]
LAWS = set(range(1, 15))
Failures = Mapping[str, Mapping[int, str]]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory, warm: tuple[str, ...]) -> Failures:
    """For each class the laws whose test failed, with what pytest said."""
    folder = tmp_path_factory.mktemp("contract")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    report = folder / "report.xml"
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [
            *warm,
            "-m",
            "pytest",
            "-q",
            "-c",
            folder / "pytest.ini",
            "--noconftest",
            "-p",
            "no:cacheprovider",
            "--tb=line",
            f"--junitxml={report}",
            f"--basetemp={folder}/t",
            WRONG,
        ],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return read_report(report)


def read_report(report: Path) -> Failures:
    found: dict[str, dict[int, str]] = {}
    for case in ET.parse(report).iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2]
        law = int(case.get("name", "").removeprefix("test_law_").partition("_")[0])
        laws = found.setdefault(name, {})
        for trouble in (*case.iter("failure"), *case.iter("error")):
            laws[law] = (trouble.get("message") or "") + (trouble.text or "")
    return found


def broken_law(name: str) -> int:
    found = re.match(r"TestLaw(\d+)", name)
    assert found, name
    return int(found[1])


def test_each_law_has_a_plugin_that_breaks_it() -> None:
    assert {broken_law(name) for name in CLASSES if name.startswith("TestLaw")} == LAWS


def test_all_laws_are_tried_on_every_plugin(failures: Failures) -> None:
    assert set(failures) == set(CLASSES)


@pytest.mark.parametrize("name", [n for n in CLASSES if n.startswith("TestGood")])
def test_a_correct_plugin_passes_all_laws(failures: Failures, name: str) -> None:
    assert failures[name] == {}


@pytest.mark.parametrize("name", [n for n in CLASSES if n.startswith("TestLaw")])
def test_a_broken_law_is_noticed(failures: Failures, name: str) -> None:
    assert broken_law(name) in failures[name]


@pytest.mark.parametrize("name", [n for n in CLASSES if n.startswith("TestLaw")])
def test_no_law_is_blamed_for_another(failures: Failures, name: str) -> None:
    assert set(failures[name]) - {broken_law(name)} == set(), failures[name]


def test_a_plugin_that_cannot_be_loaded_fails_every_law_with_the_reason(failures: Failures) -> None:
    assert set(failures["TestUnloadable"]) == LAWS
    for message in failures["TestUnloadable"].values():
        assert "every option needs a default" in message
        assert "layer" in message
