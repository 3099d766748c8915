from lmedit.testing import EditorContract


class TestRome(EditorContract):
    method = "rome"
