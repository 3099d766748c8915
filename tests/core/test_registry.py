"""Finding methods without importing them; a broken plugin is a value, not a crash."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from made_plugins import good

from lmedit.errors import BrokenPluginError, UnknownNameError
from lmedit.registry import BLOCK_VARIABLE, check_entry, entries, load, load_file, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from made_plugins import Install


def entry(name: str) -> object:
    return {entry.name: entry for entry in entries()}[name]


def test_a_good_plugin_is_found_with_what_its_distribution_says(install: Install) -> None:
    install("toy", good("toy"), metadata="Project-URL: Paper, https://example.org/paper\n")
    found = entry("toy")
    assert (found.state, found.reason) == ("ok", "")
    assert (found.distribution, found.version) == ("lmedit-toy", "1.5")
    assert found.paper == "https://example.org/paper"


def test_a_plugin_without_a_paper_has_an_empty_one(install: Install) -> None:
    install("toy", good("toy"), metadata="Project-URL: Home, https://example.org\n")
    assert entry("toy").paper == ""


def test_looking_imports_no_plugin(install: Install) -> None:
    install("toy", "raise SystemExit('imported')")
    assert entry("toy").state == "ok"
    assert "toy_toy" not in sys.modules


def test_a_good_plugin_loads(install: Install) -> None:
    install("toy", good("toy"))
    loaded = load("toy")
    assert (loaded.name, loaded.distribution, loaded.version) == ("toy", "lmedit-toy", "1.5")
    assert loaded.method.options().layer == 0
    assert check_entry(entry("toy")) == entry("toy")


def test_entries_are_sorted_by_name(install: Install) -> None:
    for name in ("zeta", "alpha", "mid"):
        install(name, good(name))
    names = [entry.name for entry in entries()]
    assert names == sorted(names)
    assert {"zeta", "alpha", "mid"} <= set(names)


def test_a_missing_module_makes_a_broken_entry(install: Install) -> None:
    install("toy", None)
    found = entry("toy")
    assert found.state == "broken"
    assert found.reason == "its module 'toy_toy' does not exist"
    with pytest.raises(
        BrokenPluginError, match=r"method 'toy' of lmedit-toy 1\.5 is broken: .*toy_toy"
    ):
        load("toy")


def test_a_missing_submodule_breaks_at_load_alone(install: Install) -> None:
    install("toy", good("toy"), value="toy_toy.absent")
    with pytest.raises(BrokenPluginError, match=r"'toy' of lmedit-toy 1\.5 cannot be loaded"):
        load("toy")


def test_two_distributions_with_one_name_are_both_named(install: Install) -> None:
    install("toy", good("toy"), distribution="lmedit-one", module="toy_one")
    install("toy", good("toy"), distribution="lmedit-two", module="toy_two")
    found = entry("toy")
    assert found.state == "broken"
    with pytest.raises(BrokenPluginError) as caught:
        load("toy")
    for said in (found.reason, str(caught.value)):
        assert "'toy'" in said
        assert "lmedit-one and lmedit-two" in said
    assert "uninstall one" in found.reason


@pytest.mark.parametrize("value", ["1 2", "no-module", "toy_absent.part:object"])
def test_an_entry_point_that_names_no_module_is_broken(install: Install, value: str) -> None:
    install("good", good("good"))
    install("toy", None, value=value)
    assert entry("good").state == "ok"
    assert entry("toy").state == "broken"


def test_a_distribution_without_metadata_does_not_hide_the_others(install: Install) -> None:
    install("good", good("good"))
    install("toy", good("toy"), metadata=None)
    assert entry("good").state == "ok"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no wheels\\nfor this machine')", "RuntimeError: for this machine"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError: .*a_module_that_is_not_there"),
        ("def broken(:", "SyntaxError: "),
        ("raise ValueError", "ValueError: no message"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_the_reason(
    install: Install, source: str, reason: str
) -> None:
    install("toy", source)
    install("good", good("good"))
    message = rf"'toy' of lmedit-toy 1\.5 cannot be loaded: {reason}.*uninstall lmedit-toy"
    with pytest.raises(BrokenPluginError, match=message):
        load("toy")
    assert load("good").name == "good"
    checked = check_entry(entry("toy"))
    assert checked.state == "broken"
    assert "lmedit-toy" in checked.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"def edit_compute": "def edit_comput"}, "unknown hook 'edit_comput'"),
        ({"location: Location)": "locatoin: Location)"}, "locatoin"),
        ({"layer: int = 0": "layer: int"}, "every option needs a default.*layer"),
        ({'Method("toy"': 'Method("tyo"'}, "calls itself 'tyo'; .*entry point's name"),
        ({'Method("toy", "no paper", ToyOptions)': '"toy"'}, "must return a Method, not 'toy'"),
        ({"ToyOptions)\n\n@hookimpl\ndef edit_l": "dict)\n\n@hookimpl\ndef edit_l"}, "Options"),
        ({'return Method("toy", "no paper", ToyOptions)': "1 / 0"}, "ZeroDivisionError: "),
        ({"@hookimpl\ndef edit_describe": "def edit_describe"}, "must return a Method, not None"),
    ],
    ids=[
        "misspelt hook",
        "misspelt argument",
        "option without default",
        "another name",
        "no Method",
        "options are no Options",
        "describe fails",
        "describe without hookimpl",
    ],
)
def test_a_plugin_that_breaks_the_contract_at_load_is_named(
    install: Install, changes: dict[str, str], reason: str
) -> None:
    install("toy", good("toy", **changes))
    install("good", good("good"))
    with pytest.raises(BrokenPluginError, match=rf"(?s)'toy' of lmedit-toy: .*{reason}"):
        load("toy")
    assert check_entry(entry("toy")).state == "broken"
    assert load("good").name == "good"


@pytest.mark.parametrize(
    ("value", "states"),
    [
        (None, ("ok", "ok")),
        ("", ("blocked", "blocked")),
        ("one", ("ok", "blocked")),
        (" two , one ", ("ok", "ok")),
        ("other", ("blocked", "blocked")),
    ],
)
def test_the_environment_chooses_the_methods(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str | None, states: tuple[str, str]
) -> None:
    install("one", good("one"))
    install("two", good("two"))
    if value is not None:
        monkeypatch.setenv(BLOCK_VARIABLE, value)
    assert (entry("one").state, entry("two").state) == states
    if states[1] == "blocked":
        with pytest.raises(BrokenPluginError, match=rf"'two' is blocked: .*{BLOCK_VARIABLE}"):
            load("two")
        assert "two" not in [loaded.name for loaded in resolve([])]


@pytest.mark.parametrize(("asked", "nearest"), [("nudgee", "nudge"), ("nugde", "nudge")])
def test_an_unknown_name_suggests_the_nearest(install: Install, asked: str, nearest: str) -> None:
    install("nudge", good("nudge"))
    with pytest.raises(UnknownNameError) as caught:
        load(asked)
    assert f"no method {asked!r} among " in str(caught.value)
    assert f"did you mean {nearest!r}?" in str(caught.value)


def test_a_name_like_no_other_suggests_nothing(install: Install) -> None:
    install("nudge", good("nudge"))
    with pytest.raises(UnknownNameError) as caught:
        load("zzzzzzzz")
    assert "nudge" in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_every_method_has_a_manager_of_its_own(install: Install) -> None:
    install("one", good("one"))
    install("two", good("two"))
    one, two = load("one"), load("two")
    assert one.manager is not two.manager
    assert one.manager.hook.edit_describe().name == "one"
    assert two.manager.hook.edit_describe().name == "two"


def test_resolving_no_names_loads_all_that_work(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("one", good("one"))
    install("two", good("two"))
    install("gone", None)
    monkeypatch.setenv(BLOCK_VARIABLE, "one,two,gone")
    assert [loaded.name for loaded in resolve([])] == ["one", "two"]
    assert [loaded.name for loaded in resolve(["two"])] == ["two"]


def test_one_file_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "my nudge.py"
    file.write_text(good("mine"))
    loaded = load_file(file)
    assert (loaded.name, loaded.distribution, loaded.version) == ("mine", "my nudge.py", "")


def test_a_file_comes_before_an_installed_method_of_its_name(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("toy", good("toy"))
    file = tmp_path / "mine.py"
    file.write_text(good("toy"))
    monkeypatch.setenv(BLOCK_VARIABLE, "toy")
    assert [loaded.distribution for loaded in resolve(["toy"], [file])] == ["mine.py"]
    assert [loaded.distribution for loaded in resolve([], [file])] == ["mine.py"]
    assert [loaded.distribution for loaded in resolve(["toy"])] == ["lmedit-toy"]


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("gone.py", None, r"no plugin file .*gone\.py.*name a Python file"),
        ("notes.txt", "text", r"notes\.txt.* is not Python"),
        ("bad.py", "raise RuntimeError('oh')", r"'bad\.py': RuntimeError: oh"),
        ("bad.py", "def broken(:", r"'bad\.py': SyntaxError"),
        ("script.py", "import sys\nsys.exit(2)", r"'script\.py': SystemExit: 2"),
        ("empty.py", "", r"empty\.py.*must return a Method"),
        ("miss.py", good("x", edit_compute="edit_comput"), r"miss\.py.*'edit_comput'"),
    ],
)
def test_a_plugin_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, source: str | None, reason: str
) -> None:
    file = tmp_path / name
    if source is not None:
        file.write_text(source)
    with pytest.raises(BrokenPluginError, match=reason):
        load_file(file)
