"""Cases to judge edits by, and corpora to prepare on, from files; the only importer of datasets."""

from lmedit.cases.corpus import corpus_of
from lmedit.cases.load import BrokenCase, CaseSet, load_cases

__all__ = ["BrokenCase", "CaseSet", "corpus_of", "load_cases"]
