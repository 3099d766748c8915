from lmedit.testing import NoSubjectContract


class TestFt(NoSubjectContract):
    method = "ft"


class TestFtL(NoSubjectContract):
    method = "ft-l"
