"""The JSON page, the schemas of the package, and what the commands print are the same."""

from __future__ import annotations

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from doc_scripts import script
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file

from lmedit.cli import main
from lmedit.compare.measures import MEASURES
from lmedit.storage.tensors import PATCH, read_facts

DOCS = Path(__file__).parents[2] / "docs"
FACT = ("--prompt", "{} is in the city of", "--subject", "The Eiffel Tower", "--target", "Rome")
ONLY_WITH_A_PRESET = {"published", "judged", "judged[]"}
"""Keys of results that these runs do not have: a model of the paper, or a judge (test_judge)."""

PAGE = script("make_json_page")


def printed(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def paths(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> set[str]:
    """The keys of *value* as the page writes them; one that is not in the schema is marked."""
    schema = PAGE._resolve(schema, root)
    if isinstance(value, list):
        inner = PAGE._resolve(schema.get("items", {}), root)
        return set().union(*(paths(each, inner, root, f"{path}[]") for each in value))
    if not isinstance(value, dict):
        return set()
    own, free = schema.get("properties", {}), schema.get("additionalProperties")
    patterns = schema.get("patternProperties", {})
    if not (own or patterns or isinstance(free, dict)):
        return set()  # the keys belong to the method
    found: set[str] = set()
    for key, each in value.items():
        name = key if key in own else next((p for p in patterns if re.search(p, key)), None)
        if name is None:
            name = "*" if isinstance(free, dict) else f"{key} (unknown)"
        below = own.get(key) or patterns.get(name) or free or {}
        place = f"{path}.{name}" if path else name
        found |= {place} | paths(each, below, root, place)
    return found


def compared(value: Any, name: str) -> tuple[set[str], set[str]]:
    """The keys of *value*, which must be valid, and those of the schema *name*."""
    schema = PAGE.schema_of(name)
    Draft202012Validator(schema).validate(value)
    return paths(value, schema, schema), {path for path, _ in PAGE.keys(schema)}


def test_the_page_is_what_the_schemas_say() -> None:
    assert (DOCS / "reference" / "json.md").read_text(encoding="utf-8") == PAGE.page()


@pytest.mark.parametrize("name", PAGE.SCHEMAS)
def test_a_schema_is_one_and_says_what_each_key_means(name: str) -> None:
    schema = PAGE.schema_of(name)
    Draft202012Validator.check_schema(schema)
    found = dict(PAGE.keys(schema))
    assert len(found) > 15
    assert [path for path, part in found.items() if not part.get("description")] == []
    assert [path for path, part in found.items() if not {"type", "enum"} & part.keys()] == []


def test_the_page_has_every_key_and_no_other() -> None:
    text = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    for name, section in zip(PAGE.SCHEMAS, text.split("\n## ")[1:], strict=True):
        shown = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        assert shown == [PAGE._simplify(path) for path, _ in PAGE.keys(PAGE.schema_of(name))]


def test_every_measure_is_a_key_of_a_row_with_its_meaning() -> None:
    row = PAGE.schema_of("results")["$defs"]["row"]["properties"]
    for name, known in MEASURES.items():
        assert row[name]["description"] == f"{known.meaning[0].upper()}{known.meaning[1:]}."


OF_MANY_FACTS = ("requests", "carried", "prepared_from", "results", "measured")
"""The keys of a patch that only a joint edit of several facts has."""


OF_A_BUDGET = "budget"
"""The key of a patch that only an edit within a budget has."""


@pytest.mark.slow
def test_an_edit_and_its_patch_are_what_the_schemas_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    patch = tmp_path / "edit.safetensors"
    named = ("-o", "mlp_out", "transformer.h.{}.mlp.c_proj")  # then the patch keeps the name
    seen, known = compared(printed("edit", "ft", *FACT, *named, "-O", patch, "--json"), "edit")
    assert seen == known
    seen, known = compared(read_facts(patch, PATCH), "patch")
    of_experts = {"sites[].index"}
    others = (*OF_MANY_FACTS, OF_A_BUDGET)
    assert seen == {path for path in known if not path.startswith(others)} - of_experts


@pytest.mark.slow
def test_an_edit_within_a_budget_is_what_the_schemas_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    patch = tmp_path / "edit.safetensors"
    flags = ("-o", "methods", "mend", "--budget", "KL<0.5", "-O", patch, "--json")
    seen, known = compared(printed("edit", "best", *FACT, *flags), "edit-best")
    assert seen == known - {"edit.*"}
    seen, known = compared(read_facts(patch, PATCH), "patch")
    assert {path for path in known if path.startswith(OF_A_BUDGET)} <= seen


@pytest.mark.slow
def test_an_audit_is_what_the_schema_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    patch, folder = tmp_path / "edit.safetensors", tmp_path / "edited"
    printed("edit", "mend", *FACT, "-O", patch, "--json")
    assert CliRunner().invoke(main, ["apply", str(patch), "-O", str(folder)]).exit_code == 0
    told = printed("audit", folder, "--json")
    seen, known = compared(told, "audit")
    only_of_changes = ("config.", "tensors[].remainder.")
    assert seen == {path for path in known if not path.startswith(only_of_changes)}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_ctx": 7}), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wpe.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = CliRunner().invoke(main, ["audit", str(folder), "--json"])
    assert done.exit_code == 1
    assert compared(json.loads(done.stdout), "audit")[0] == known


def ability_tasks(folder: Path) -> Path:
    """Two tasks of two documents in *folder*."""
    spec = spec_from_file_location("tasks", DOCS.parent / "worlds" / "ability_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_tasks("demo", folder, 4, 2)
    return folder


def test_abilities_are_what_the_schema_says(tmp_path: Path) -> None:
    wanted = ("--tasks", "demo_choice", "--include-path", ability_tasks(tmp_path), "--limit", 1)
    seen, known = compared(printed("abilities", "demo", *wanted, "--json"), "abilities")
    of_edits = {path for path in known if path.startswith("models[].")}
    assert seen == known - of_edits


@pytest.mark.slow
def test_results_are_what_the_schema_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    common = ("compare", "ft", "mend", "--limit", 2, "--json", "--run")
    tasks = ("--abilities", "demo_choice", "--include-path", ability_tasks(tmp_path / "tasks"))
    picked = ("--only", "wrong")
    seen, known = compared(printed(*common, tmp_path / "one", *tasks, *picked), "results")
    stored = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))
    assert compared(stored, "results")[0] == seen
    few = ("--heldout-lines", 4, "--seeds", "0,1")
    piled = printed(*common, tmp_path / "two", "--regime", "sequential", "--sizes", "1,2", *few)
    seen |= compared(piled, "results")[0]
    assert {path for path in seen if path not in known} == set()
    grouped = {f"rows[].{name}" for name, known in MEASURES.items() if known.group}
    missing = {path for path in known - seen if path.partition(".")[0] not in ONLY_WITH_A_PRESET}
    allowed = grouped | {"rows[].failures.*", "rows[].^portability/(?!.*_(ci|sd)$)"}
    of_joint_methods = {path for path in missing if path.startswith("rows[].right_after")}
    of_several_edits = {"several_edits", "several_edits.*"}  # tests/together/test_several_edits.py
    assert missing <= allowed | of_joint_methods | of_several_edits | {"rows[].computed"}


def test_an_unknown_key_is_seen() -> None:
    schema = PAGE.schema_of("edit")
    assert paths({"seconds": 1, "new": 2}, schema, schema) == {"seconds", "new (unknown)"}
