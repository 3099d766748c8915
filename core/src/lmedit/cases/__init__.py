"""Read cases to judge edits, and corpora to prepare methods; only this folder uses datasets."""

from lmedit.cases.corpus import corpus_of, texts_given
from lmedit.cases.knowns import Known, KnownSet
from lmedit.cases.load import (
    CaseSet,
    CasesGiven,
    cases_given,
    cases_of_world,
    load_cases,
    load_facts,
    load_knowns,
)
from lmedit.cases.pull import pull_cases
from lmedit.cases.records import BrokenCase, Only
from lmedit.cases.sources import SOURCES, pulled_file

__all__ = [
    "SOURCES",
    "BrokenCase",
    "CaseSet",
    "CasesGiven",
    "Known",
    "KnownSet",
    "Only",
    "cases_given",
    "cases_of_world",
    "corpus_of",
    "load_cases",
    "load_facts",
    "load_knowns",
    "pull_cases",
    "pulled_file",
    "texts_given",
]
