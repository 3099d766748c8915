"""The laws of lmedit, one test for each, on a tiny random model."""

from lmedit.testing import EditorContract


class TestLaws(EditorContract):
    """Inherits fourteen tests, one for each law."""

    method = "newmethod"
