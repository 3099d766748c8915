from types import MappingProxyType

from lmedit.testing import EditorContract

SHORT = MappingProxyType({"prefixes": [[4, 2]], "steps": 4, "layers": [1, 2]})


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
