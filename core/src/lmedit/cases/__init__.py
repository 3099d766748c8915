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
from lmedit.cases.pull import pull
from lmedit.cases.records import BrokenCase
from lmedit.cases.sources import SOURCES, stored

__all__ = [
    "SOURCES",
    "BrokenCase",
    "CaseSet",
    "CasesGiven",
    "Known",
    "KnownSet",
    "cases_given",
    "cases_of_world",
    "corpus_of",
    "load_cases",
    "load_facts",
    "load_knowns",
    "pull",
    "stored",
    "texts_given",
]
