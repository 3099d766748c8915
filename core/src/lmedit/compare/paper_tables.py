"""The tables of the ROME paper (Meng et al. 2022, arXiv 2202.05262v5), printed beside a run."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmedit.cases.sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.cases import CaseSet
    from lmedit.models import Lm

Row = dict[str, float]
Shape = tuple[str, int]
"""(model_type, number of blocks)."""
XL, LARGE, MEDIUM, GPT_J = ("gpt2", 48), ("gpt2", 36), ("gpt2", 24), ("gptj", 28)
SOURCE = "Meng et al. 2022, arXiv 2202.05262v5"


def _rows(names: str, table: str) -> dict[str, Row]:
    """The rows of *table*, a line each: the method, then a number for each of *names*."""
    rows = [line.split() for line in table.strip().splitlines()]
    return {
        method: dict(zip(names.split(), map(float, numbers), strict=True))
        for method, *numbers in rows
    }


FULL = "S ES ES_ci EM EM_ci PS PS_ci PM PM_ci NS NS_ci NM NM_ci GE GE_ci RS RS_ci"
SHORT = "S ES ES_ci EM PS PS_ci PM NS NS_ci NM GE RS"
ZSRE = "efficacy efficacy_ci paraphrase paraphrase_ci specificity specificity_ci"
ZSRE_SHORT = "efficacy paraphrase specificity"
TABLE_4: Mapping[Shape, Mapping[str, Row]] = MappingProxyType(
    {
        XL: _rows(
            FULL,
            """
            base 30.5 22.2 0.9 -4.8 0.3 24.7 0.8 -5.0 0.3 78.1 0.6 5.0 0.2 626.6 0.3 31.9 0.2
            ft 65.1 100.0 0.0 98.8 0.1 87.9 0.6 46.6 0.8 40.4 0.7 -6.2 0.4 607.1 1.1 40.5 0.3
            ft-l 66.9 99.1 0.2 91.5 0.5 48.7 1.0 28.9 0.8 70.3 0.7 3.5 0.3 621.4 1.0 37.4 0.3
            kn 35.6 28.7 1.0 -3.4 0.3 28.0 0.9 -3.3 0.2 72.9 0.7 3.7 0.2 570.4 2.3 30.3 0.3
            ke 52.2 84.3 0.8 33.9 0.9 75.4 0.8 14.6 0.6 30.9 0.7 -11.0 0.5 586.6 2.1 31.2 0.3
            mend 57.9 99.1 0.2 70.9 0.8 65.4 0.9 12.2 0.6 37.9 0.7 -11.6 0.5 624.2 0.4 34.8 0.3
            rome 89.2 100.0 0.1 97.9 0.2 96.4 0.3 62.7 0.8 75.4 0.7 4.2 0.2 621.9 0.5 41.9 0.3
            """,
        ),
        GPT_J: _rows(
            FULL,
            """
            base 23.6 16.3 1.6 -7.2 0.7 18.6 1.5 -7.4 0.6 83.0 1.1 7.3 0.5 621.8 0.6 29.8 0.5
            ft 25.5 100.0 0.0 99.9 0.0 96.6 0.6 71.0 1.5 10.3 0.8 -50.7 1.3 387.8 7.3 24.6 0.8
            ft-l 68.7 99.6 0.3 95.0 0.6 47.9 1.9 30.4 1.5 78.6 1.2 6.8 0.5 622.8 0.6 35.5 0.5
            mend 63.2 97.4 0.7 71.5 1.6 53.6 1.9 11.0 1.3 53.9 1.4 -6.0 0.9 620.5 0.7 32.6 0.5
            rome 91.5 99.9 0.1 99.4 0.3 99.1 0.3 74.1 1.3 78.9 1.2 5.2 0.5 620.1 0.9 43.0 0.6
            """,
        ),
        MEDIUM: _rows(
            SHORT,
            """
            base 33.4 25.0 1.0 -3.3 27.4 0.9 -3.0 74.9 0.7 3.6 625.8 31.4
            ft-l 68.0 100.0 0.1 94.9 68.5 0.9 6.1 51.3 0.8 -1.7 626.1 39.3
            rome 87.4 100.0 0.0 94.9 96.4 0.3 56.9 71.8 0.7 2.8 625.0 41.7
            """,
        ),
        LARGE: _rows(
            SHORT,
            """
            base 32.8 23.9 1.0 -4.0 27.4 0.9 -3.5 75.7 0.7 4.3 625.4 31.8
            ft-l 71.2 100.0 0.1 96.3 63.0 0.9 5.1 61.5 0.7 1.1 625.2 39.3
            rome 88.2 99.9 0.1 98.2 96.3 0.3 60.4 73.4 0.7 3.5 622.5 41.9
            """,
        ),
    }
)
"""CounterFact: Table 4 (GPT-2 XL, 7500 records; GPT-J, 2000), Table 5 (medium, large)."""
TABLE_1: Mapping[Shape, Mapping[str, Row]] = MappingProxyType(
    {
        XL: _rows(
            ZSRE,
            """
            base 22.2 0.5 21.3 0.5 24.2 0.5
            ft 99.6 0.1 82.1 0.6 23.2 0.5
            ft-l 92.3 0.4 47.2 0.7 23.4 0.5
            ke 65.5 0.6 61.4 0.6 24.9 0.5
            mend 75.9 0.5 65.3 0.6 24.1 0.5
            rome 99.8 0.0 88.1 0.5 24.2 0.5
            """,
        ),
        MEDIUM: _rows(
            ZSRE_SHORT,
            """
            base 18.8 18.1 21.3
            ft-l 97.2 59.4 20.9
            rome 96.6 79.8 21.3
            """,
        ),
        LARGE: _rows(
            ZSRE_SHORT,
            """
            base 20.6 19.8 22.5
            ft-l 98.3 56.8 22.4
            rome 99.6 84.7 22.5
            """,
        ),
    }
)
"""zsRE, 10 000 records: Table 1 (GPT-2 XL), Table 6 (medium, large)."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: its cases, their number for each model, and its groups of metrics."""

    cases: str
    records: Mapping[Shape, int]
    metrics: tuple[str, ...]
    rows: Mapping[Shape, Mapping[str, Row]]


PRESETS: Mapping[str, PaperTable] = MappingProxyType(
    {
        "rome-table4": PaperTable(
            "counterfact", {XL: 7500, GPT_J: 2000, MEDIUM: 7500, LARGE: 7500}, ("text",), TABLE_4
        ),
        "rome-table1": PaperTable("zsre", dict.fromkeys((XL, MEDIUM, LARGE), 10_000), (), TABLE_1),
    }
)


def paper_figures(preset: str, lm: Lm, cases: CaseSet, methods: list[str]) -> dict[str, Any] | None:
    """The paper's rows for *methods*; None if the model or the cases are not the paper's."""
    table = PRESETS[preset]
    rows = table.rows.get((lm.model_type, lm.n_layers))
    if rows is None or not _same(cases, table.cases):
        return None
    found = [{"method": name, **rows[name]} for name in methods if name in rows]
    return {"source": SOURCE, "preset": preset, "rows": found}


def _same(cases: CaseSet, name: str) -> bool:
    """Whether *cases* are the published set: by digest if it is known, else by name."""
    digest = SOURCES[name].sha256
    return cases.digest == digest if digest else cases.name.rpartition(":")[2] == name
