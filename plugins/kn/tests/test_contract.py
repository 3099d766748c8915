from typing import ClassVar

from lmedit.testing import EditorContract


class TestKn(EditorContract):
    method = "kn"


class TestKnOfTheReleasedCode(EditorContract):
    method = "kn"
    options: ClassVar = {"preset": "rome"}


class TestErasing(EditorContract):
    method = "kn"
    options: ClassVar = {"operation": "erase"}
