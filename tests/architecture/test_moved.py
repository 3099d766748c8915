"""Module paths of version 0.1 go on working, with a warning that names the new one."""

from __future__ import annotations

import importlib

import pytest

from lmedit._moved import ELSEWHERE, MOVED, NAMES


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_warns_and_gives_the_module_that_moved(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(importlib.sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}"):
        found = importlib.import_module(old)
    for new in (MOVED[old], *ELSEWHERE.get(old, ())):
        module = importlib.import_module(new)
        public = [name for name in vars(module) if not name.startswith("_")]
        assert public
        assert all(hasattr(found, name) for name in public)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = found.nothing


def test_names_that_left_a_module_warn_there() -> None:
    for (module, name), home in NAMES.items():
        with pytest.warns(DeprecationWarning, match=f"{module}.{name} has moved"):
            found = getattr(importlib.import_module(module), name)
        assert found is getattr(importlib.import_module(home), name)


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lmedit.nowhere")
