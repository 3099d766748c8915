"""`--only`: cases picked by what the unedited model answers, against a second computation."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmedit import comparison, editor
from lmedit.actions.tune import set_up_tuning
from lmedit.cases import load_cases
from lmedit.compare.only import RIGHT, UNKNOWN, WRONG, keep_only, word_of
from lmedit.errors import CasesError, UnknownNameError
from lmedit.models import load_lm, worlds
from lmedit.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

BROKEN = {"subject": "Nobody", "prompt": "no place", "target_new": "x"}


@pytest.mark.parametrize(
    ("answer", "true", "word"),
    [
        (" Paris, and it is", "Paris", RIGHT),
        (" the PARIS.", "Paris", RIGHT),
        (" Parisian streets", "Paris", WRONG),
        (" New", "New York", WRONG),
        (" Rome", "Paris", WRONG),
        (" Rome", None, UNKNOWN),
        (" ...", "Paris", UNKNOWN),
    ],
)
def test_each_answer_has_one_word(answer: str, true: str | None, word: str) -> None:
    assert word_of(answer, true) == word


def facts() -> list[dict[str, Any]]:
    """Facts of the embedded world, some with a false "true answer", one without any."""
    found = []
    for number, case in enumerate(load_cases("demo", 8).good):
        fact = {
            "id": str(number),
            "subject": case.request.subject,
            "prompt": case.request.prompt,
            "target_new": "Zanzibar",
            "target_true": "Quito" if number % 3 == 2 else case.request.target_true,
        }
        found.append(fact)
    del found[5]["target_true"]
    return [*found[:4], BROKEN, *found[4:]]


def second_words(records: Sequence[dict[str, Any]]) -> list[str]:
    """The words again: transformers alone, one token at a time, without a cache."""
    folder = str(worlds()["demo"].model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for record in records:
        if "target_true" not in record:
            found.append("broken" if record is BROKEN else UNKNOWN)
            continue
        ids = tokenizer(record["prompt"].replace("{}", record["subject"]), return_tensors="pt")
        row = ids["input_ids"]
        start = row.shape[1]
        for _ in range(8):
            with torch.no_grad():
                best = model(row).logits[0, -1].argmax().reshape(1, 1)
            row = torch.cat([row, best], dim=1)
        text, true = tokenizer.decode(row[0, start:]).lower(), record["target_true"].lower()
        bare = re.sub(r"^\W*(the |an? )?", "", text)
        found.append(RIGHT if re.match(re.escape(true) + r"\b", bare) else WRONG)
    return found


def test_the_filter_agrees_with_a_second_computation(lmedit: Run, tmp_path: Path) -> None:
    """compare keeps just the cases that a plain loop over the model calls wrong."""
    records = facts()
    words = second_words(records)
    assert {RIGHT, WRONG, UNKNOWN, "broken"} == set(words)
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    place = tmp_path / "run"
    command = ("compare", "ft", "-o", "steps", 1, "--cases", file, "--run", place)
    done = lmedit(*command, "--only", "wrong", "--json")
    found = json.loads(done.stdout)
    counts = Counter(words)
    assert found["cases"]["only"] == {
        "word": "wrong",
        "kept": counts[WRONG] + counts["broken"],
        "dropped": {RIGHT: counts[RIGHT], UNKNOWN: counts[UNKNOWN]},
        "not_asked": 0,
    }
    assert found["cases"]["n"] == counts[WRONG] + counts["broken"]
    assert found["protocol"]["only"].startswith("wrong: ")
    stored = json.loads((place / "cases.json").read_text(encoding="utf-8"))
    expected = [r["id"] for r, word in zip(records, words, strict=True) if word == WRONG]
    assert [case["id"] for case in stored] == expected
    assert f"--only wrong: {counts[WRONG] + 1} kept, " in done.stderr
    assert found["rows"][1]["n_failed"] == counts["broken"]
    everything = json.loads(lmedit(*command, "--json").stdout)
    assert "only" not in everything["cases"]
    assert "only" not in everything["protocol"]
    assert not set(found["rows"][0]["keys"]) & set(everything["rows"][0]["keys"])


def test_the_limit_counts_kept_cases(tmp_path: Path) -> None:
    records = facts()
    words = second_words(records)
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    lm, cases = load_lm("demo"), load_cases(str(file))
    right = [r["id"] for r, word in zip(records, words, strict=True) if word == RIGHT]
    first, last = keep_only(lm, cases, RIGHT, 2), keep_only(lm, cases, RIGHT, 2, last=True)
    assert [case.id for case in first.good] == right[:2]
    assert [case.id for case in last.good] == right[-2:]
    assert first.only is not None
    assert last.only is not None
    place = [r.get("id") for r in records].index(right[1])
    assert first.only.not_asked == len(records) - place - 1
    assert sum(first.only.dropped.values()) == place + 1 - 2
    with pytest.raises(UnknownNameError, match="word of --only"):
        keep_only(lm, cases, "maybe")
    known = load_cases(str(file), 2)
    with pytest.raises(CasesError, match="keeps none of the 2 cases"):
        keep_only(lm, known, UNKNOWN)


def test_a_table_of_the_paper_takes_no_filter(lmedit: Run) -> None:
    done = lmedit("compare", "ft", "--preset", "rome-table4", "--only", "wrong")
    assert done.exit_code != 0
    assert "give --only without --preset" in done.stderr


def write_facts(tmp_path: Path) -> Path:
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, facts())), encoding="utf-8")
    return file


def test_piled_edits_and_two_seeds_use_the_kept_cases(lmedit: Run, tmp_path: Path) -> None:
    flags = ("--regime", "sequential", "--sizes", "1,3", "--heldout-lines", 2, "--seeds", "0,1")
    command = ("compare", "ft", "-o", "steps", 1, "--cases", write_facts(tmp_path), *flags)
    picked = ("--only", "right", "--run", tmp_path / "run", "--limit")
    found = json.loads(lmedit(*command, *picked, 3, "--json").stdout)
    assert found["cases"]["only"]["dropped"] == {"wrong": 1}
    assert found["rows"][1]["size"] == 3
    stored = json.loads((tmp_path / "run" / "cases.json").read_text(encoding="utf-8"))
    assert {case["id"] for case in stored} == {"0", "1", "3"}
    assert "--sizes '1,3': there are 1 cases" in lmedit(*command, *picked, 1).stderr


def test_runs_that_were_picked_in_another_way_are_not_compared(lmedit: Run, tmp_path: Path) -> None:
    command = ("compare", "ft", "-o", "steps", 1, "--cases", write_facts(tmp_path))
    for word in ("right", "wrong"):
        lmedit(*command, "--only", word, "--limit", 2, "--run", tmp_path / word)
    done = lmedit("report", tmp_path / "right", tmp_path / "wrong")
    told = "because other answers pick their cases (--only right and --only wrong)"
    assert told in done.stderr
    assert "--only" not in lmedit("report", tmp_path / "right", tmp_path / "right").stderr


def test_tune_takes_the_last_kept_cases(tmp_path: Path) -> None:
    plan = Plan(methods=("ft",), cases=str(write_facts(tmp_path)), limit=2, only="right")
    words = second_words(facts())
    right = [r["id"] for r, word in zip(facts(), words, strict=True) if word == RIGHT]
    assert [case.id for case in set_up_tuning(plan).cases.good] == right[-2:]


def test_python_takes_the_filter() -> None:
    lm = load_lm("demo")
    found = comparison([editor("ft", lm)], "demo", limit=2, only="right")
    kept = keep_only(lm, load_cases("demo"), "right", 2)
    assert found.run.raw["cases"]["only"]["word"] == "right"
    assert found.run.raw["rows"][0]["n"] == len(kept.good) == 2
    assert found.run.raw["protocol"]["only"].startswith("right: ")
    with pytest.raises(UnknownNameError, match="word of --only"):
        comparison([editor("ft", lm)], "demo", limit=2, only="maybe")
