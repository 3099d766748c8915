from lmedit.testing import EditorContract


class TestFt(EditorContract):
    method = "ft"


class TestFtL(EditorContract):
    method = "ft-l"
