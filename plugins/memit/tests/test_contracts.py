from types import MappingProxyType

import pytest

from lmedit.testing import EditorContract
from lmedit_memit import remembering

SHORT = MappingProxyType({"prefixes": [[4, 2]], "steps": 4, "layers": [1, 2]})


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws are tested on computed targets; `test_remembering` compares remembered ones."""
    monkeypatch.setattr(remembering, "MOST_BYTES", 0)


class TestMemit(EditorContract):
    method = "memit"
    options = SHORT


class TestMemitRemembering(EditorContract):
    method = "memit"
    options = MappingProxyType({**SHORT, "preset": "encore"})


class TestPmet(EditorContract):
    method = "memit"
    options = MappingProxyType({**SHORT, "preset": "pmet"})


class TestEmmet(EditorContract):
    method = "emmet"
    options = MappingProxyType({"prefixes": [[4, 2]], "steps": 4, "layer": 1, "remember": True})


class TestAlphaEdit(EditorContract):
    method = "alphaedit"
    options = SHORT


class TestBetaEdit(EditorContract):
    method = "alphaedit"
    options = MappingProxyType({**SHORT, "threshold_share": 0.1, "weight": 5.0, "renew_after": 1})
