from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from lmedit.testing import NoSubjectContract
from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from lmedit import Lm

SMALL = MappingProxyType(
    {"steps": 4, "validate_every": 2, "batch": 4, "rank": 4, "hidden": 1, "layers": [1, 2]}
)


class TestUltraEdit(NoSubjectContract):
    method = "ultraedit"
    options = MappingProxyType({"layers": [1, 2]})


class TestUltraEditOnTwoShapes(NoSubjectContract):
    method = "ultraedit"
    options = MappingProxyType({"matrices": {"c_fc": [0, 1], "c_proj": [1, 2]}})


class TestStableEdit(NoSubjectContract):
    method = "ultraedit"
    options = MappingProxyType({"layers": [1, 2], "preset": "stable", "warm_up": 20})


class TestMalmen(NoSubjectContract):
    method = "malmen"
    options = SMALL

    @pytest.fixture
    def lm(self) -> "Lm":
        return tiny_family("gpt2")
