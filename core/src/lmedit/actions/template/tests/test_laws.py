"""The laws of lmedit, each as a test, on a tiny random model."""

from lmedit.testing import EditorContract


class TestLaws(EditorContract):
    """Inherited: seven tests, one for each law."""

    method = "newmethod"
