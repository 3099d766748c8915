"""Some rows of the table in docs/reference/families.md are tried again; all of them by flag."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import transformers
from families_page import MAY_REFUSE, PAGE, compared, page, read_outcomes, read_page, verdict
from sweep import kinds, swept
from trials import tried

if TYPE_CHECKING:
    from pathlib import Path

TABLE = read_page(PAGE.read_text(encoding="utf-8"))
NAMED = (
    *("bart", "deepseek_v3", "gemma3n_text", "gemma4_text", "glm4_moe", "gpt_oss", "lfm2"),
    *("llama4_text", "mamba", "mixtral", "olmo2", "qwen2_5_vl", "qwen3_5_text", "qwen3_moe"),
)
"""Rows that are tried in every run of the tests."""
USED = (
    *("mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss", "llama4", "llama4_text"),
    *("qwen3_5", "qwen3_5_text", "lfm2", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
    *("qwen2_5_vl", "mamba", "mamba2"),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


def test_the_table_has_every_decoder_of_transformers() -> None:
    known = set(kinds())
    if f"transformers {transformers.__version__} " in PAGE.read_text(encoding="utf-8"):
        assert set(TABLE) == known
    assert set(NAMED) <= set(TABLE)


def test_the_page_is_made_of_the_outcomes_that_it_tells() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = page(read_outcomes(text))
    if f"transformers {transformers.__version__} " in text:
        assert made == text
    assert read_page(made) == TABLE


def test_no_row_is_wrong_in_silence_or_has_a_traceback() -> None:
    assert not {kind for kind, row in TABLE.items() if "WRONG" in row.values()}
    assert not {kind for kind, row in TABLE.items() if "ERROR" in row.values()}


def test_the_families_that_people_use_are_right_in_all() -> None:
    found = read_outcomes(PAGE.read_text(encoding="utf-8"))
    assert {kind: verdict(found[kind]) for kind in USED} == dict.fromkeys(USED, "all")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the models' own code
@pytest.mark.parametrize("kind", NAMED)
def test_a_family_is_as_the_table_says(kind: str) -> None:
    if kind not in kinds():
        pytest.skip(f"this transformers has no {kind}")
    found = {kind: tried(kind)}
    assert not compared(found, TABLE)
    assert verdict(found[kind]) == "all"


@pytest.mark.skipif(not os.environ.get("LMEDIT_ALL_FAMILIES"), reason="LMEDIT_ALL_FAMILIES=1")
def test_every_family_is_as_the_table_says() -> None:
    found = dict(swept(kinds()))
    assert not compared(found, TABLE)


def test_the_verdicts_of_rows() -> None:
    right = dict.fromkeys(("loads", "FT", "ROME", "KN", "MEND", "export"), ("ok", ""))
    assert verdict(right) == "all"
    for name in MAY_REFUSE:
        assert verdict({**right, name: ("refused", "why")}) == "all"
        assert verdict({**right, name: ("wrong", "why")}) == "wrong"
    assert verdict({**right, "KN": ("refused", "why")}) == "part"
    assert verdict({**right, "KN": ("error", "why")}) == "error"
    assert verdict({"loads": ("refused", "why")}) == "refused"
    assert verdict({"builds": ("error", "why")}) == "untried"
    assert compared({"new": right}, {}) == ["new: not in the table"]
    assert compared({"a": {"loads": ("refused", "why")}}, {"a": {"loads": "yes"}}) == [
        "a: loads was yes, is no why"
    ]
