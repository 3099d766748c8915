"""The files of the world smollm2; the last test asks the real model."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

Records = list[dict[str, Any]]

WORLD = Path(__file__).parents[2] / "worlds" / "smollm2"
FILES = WORLD / "src" / "lmedit_smollm2"
KEYS = {
    "case_id",
    "pararel_idx",
    "requested_rewrite",
    "paraphrase_prompts",
    "neighborhood_prompts",
    "attribute_prompts",
    "generation_prompts",
    "relation_prompts",
}


def read(name: str) -> Records:
    return json.loads((FILES / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def records() -> Records:
    return read("counterfact.json")


@pytest.fixture(scope="module")
def training() -> Records:
    return read("training.json")


def fact(record: dict) -> tuple[str, str]:
    asked = record["requested_rewrite"]
    return asked["subject"], asked["relation_id"]


def test_every_record_has_counterfacts_schema(records: Records, training: Records) -> None:
    for record in [*records, *training]:
        asked = record["requested_rewrite"]
        assert set(record) == KEYS
        assert asked["prompt"].count("{}") == 1
        assert len(record["paraphrase_prompts"]) == 2
        for prompt in record["paraphrase_prompts"]:
            assert prompt.count(asked["subject"]) == 1
            assert "{}" not in prompt
        for other in record["relation_prompts"]:
            assert set(other) == {"prompt", "answer"}


def test_a_record_has_neighbours_attributes_and_beginnings(records: Records) -> None:
    for record in records:
        own = record["requested_rewrite"]["prompt"].replace("{}", fact(record)[0])
        for kind, fewest in (("neighborhood_prompts", 2), ("attribute_prompts", 3)):
            assert fewest <= len(record[kind]) <= 10
            assert own not in record[kind]
            assert len(set(record[kind])) == len(record[kind])
        assert len(record["generation_prompts"]) == 10


def test_no_relation_drowns_the_rest(records: Records, training: Records) -> None:
    counts = Counter(fact(record)[1] for record in records)
    assert len(records) >= 1000
    assert len(training) >= 2000
    assert len(counts) >= 10
    assert max(counts.values()) <= 0.2 * len(records)
    assert len({fact(record)[1] for record in records[:100]}) >= 8


def test_no_subject_is_trained_and_evaluated(records: Records, training: Records) -> None:
    for made in (records, training):
        assert len({fact(record) for record in made}) == len(made)
        assert [record["case_id"] for record in made] == list(range(len(made)))
    assert not {fact(r)[0] for r in records} & {fact(r)[0] for r in training}


def test_the_new_answer_begins_with_another_word(records: Records, training: Records) -> None:
    for record in [*records, *training]:
        asked = record["requested_rewrite"]
        new, true = asked["target_new"]["str"], asked["target_true"]["str"]
        assert new.split()[0] != true.split()[0]
        assert true.casefold() not in asked["subject"].casefold()


def test_the_texts_do_not_overlap_and_the_files_are_small() -> None:
    text = (FILES / "text.txt").read_text("utf-8").splitlines()
    heldout = (FILES / "heldout.txt").read_text("utf-8").splitlines()
    assert 3000 <= len(text) <= 6000
    assert len(heldout) == 300
    assert not set(text) & set(heldout)
    files = [
        path for path in WORLD.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    trained = [path for path in files if path.parent.name == "lmedit-prepared"]
    assert {path.name for path in trained} == {
        "bases.json",
        "ke.safetensors",
        "mend.safetensors",
        "rome.safetensors",
    }
    assert sum(path.stat().st_size for path in trained) < 30_000_000
    others = sum(path.stat().st_size for path in files if path not in trained)
    assert others < 6_500_000


def asker(model: Path) -> Any:
    """The script that asked all facts, loaded from its file."""
    sys.path.insert(0, str(WORLD / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location(
            "smollm2_facts", WORLD / "scripts" / "facts.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module.Asker(model)


def test_the_model_answers_the_records_facts(records: Records, real_cache: Path) -> None:
    drawn = random.Random(0).sample(records, 30)
    asked = [record["requested_rewrite"] for record in drawn]
    questions = [(a["prompt"].replace("{}", a["subject"]), a["target_true"]["str"]) for a in asked]
    assert sum(asker(real_cache / "models" / "smollm2").right(questions)) >= 29
