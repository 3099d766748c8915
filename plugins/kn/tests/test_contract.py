from typing import ClassVar

from lmedit.testing import NoSubjectContract


class TestKn(NoSubjectContract):
    method = "kn"


class TestKnOfTheReleasedCode(NoSubjectContract):
    method = "kn"
    options: ClassVar = {"preset": "rome"}


class TestErasing(NoSubjectContract):
    method = "kn"
    options: ClassVar = {"operation": "erase"}
