from typing import TYPE_CHECKING, ClassVar

import pytest

from lmedit.testing import NoSubjectContract
from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from lmedit import Lm

SMALL = {"steps": 4, "validate_every": 2, "batch": 4, "hidden": 4, "condition": 4}


class TestKe(NoSubjectContract):
    method = "ke"
    options: ClassVar = SMALL

    @pytest.fixture
    def lm(self) -> "Lm":
        return tiny_family("gpt2")
