"""Patches of many facts: made, shown, applied with their memory, taken out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lmedit import load_lm, load_patch
from lmedit.edits.model_folders import open_folder
from lmedit.storage.tensors import PATCH, read_facts

Run = Callable[..., Result]
SUBJECTS = ("The tower", "A small boat", "The old river", "Nobody in the city", "The night")
SHORT = ("-o", "layers", "[1,2]", "-o", "steps", "3", "-o", "prefixes", "[]")


def facts_file(name: str, subjects: tuple[str, ...], target: str = "the sea") -> Path:
    path = Path(name).absolute()
    lines = [
        {"prompt": "{} is in the city of", "subject": subject, "target_new": target}
        for subject in subjects
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture
def edit(lmedit: Run, model: Path, text: Path) -> Callable[..., Result]:
    def run(
        out: str, *facts: str, on: Path = model, method: str = "memit", options: Any = ()
    ) -> Result:
        path = facts_file(f"{out}.jsonl", facts)
        corpus = ("--corpus", text) if on == model else ()
        return lmedit(
            "edit",
            method,
            "--facts",
            path,
            "-m",
            on,
            "-O",
            f"{out}.safetensors",
            "--force",
            *(SHORT if method != "emmet" else ("-o", "layer", "1", *SHORT[3:])),
            *options,
            *corpus,
        )

    return run


def test_one_patch_of_many_facts(lmedit: Run, edit: Run, model: Path) -> None:
    done = edit("many", *SUBJECTS)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("is in the city of -> the sea" in line for line in lines) == 5
    assert "memit computed one edit of 5 facts" in done.stdout
    update, facts = load_patch(Path("many.safetensors"))
    assert [request["subject"] for request in facts["requests"]] == [*SUBJECTS]
    assert facts["carried"] == []
    assert len(facts["results"]) == facts["measured"]["facts"] == 5
    assert {tuple(delta.shape) for delta in update.deltas.values()} == {(16, 64)}
    shown = lmedit("show", "many.safetensors").stdout
    assert "5 facts: The tower is in the city of -> the sea, ..." in shown
    assert f"took: {facts['measured']['took']} of 5 facts" in shown


def test_apply_log_verify_and_revert(lmedit: Run, edit: Run, model: Path) -> None:
    base = load_lm(str(model)).digest
    edit("many", *SUBJECTS[:3])
    assert lmedit("apply", "many.safetensors", "-m", model, "-O", "edited").exit_code == 0
    logged = lmedit("log", "edited").stdout
    assert "memit: 3 facts: The tower is in the city of -> the sea, ..." in logged
    listed = lmedit("log", "edited", "--facts").stdout
    assert all(f"  {subject} is in the city of -> the sea" in listed for subject in SUBJECTS[:3])
    assert "with 1 edit(s), to the bit" in lmedit("verify", "edited").stdout
    assert lmedit("revert", "edited", "many.safetensors").exit_code == 0
    assert load_lm("edited").digest == base


def test_one_fact_of_many_cannot_be_taken_out_alone(lmedit: Run, edit: Run, model: Path) -> None:
    edit("many", *SUBJECTS[:3])
    lmedit("apply", "many.safetensors", "-m", model, "-O", "edited")
    for name in ("A small boat", "A small boat is in the city of"):
        done = lmedit("revert", "edited", name)
        assert done.exit_code == 1
        assert "is one of 3 facts of edit" in done.stderr
        assert "--facts" in done.stderr
        assert done.stderr.strip().count("\n") == 0


def test_a_recipe_of_many_facts(lmedit: Run, edit: Run, model: Path) -> None:
    edit("many", *SUBJECTS[:2])
    Path("r.toml").write_text(f'base = "{model}"\n[[edit]]\npatch = "many.safetensors"\n')
    assert lmedit("apply", "--recipe", "r.toml", "-O", "edited").exit_code == 0
    assert lmedit("verify", "edited", "--recipe", "r.toml").exit_code == 0


def test_an_edited_folder_hands_its_memory_on(lmedit: Run, edit: Run, model: Path) -> None:
    """And the preparation is the base's; the second patch goes on top, or warns on the base."""
    seq = ("-o", "preset", "seq", "-o", "tolerance", "0.1")
    assert edit("one", *SUBJECTS[:2], options=seq).exit_code == 0
    assert lmedit("apply", "one.safetensors", "-m", model, "-O", "edited").exit_code == 0
    done = edit("two", *SUBJECTS[2:], on=Path("edited"), options=seq)
    assert done.exit_code == 0, done.stderr
    assert "what they carry is used" in done.stderr
    first = open_folder("edited").ledger.entries[0]
    facts = read_facts(Path("two.safetensors"), PATCH)
    assert facts["carried"] == [first.id]
    assert facts["model"]["digest"] == load_lm(str(model)).digest
    assert "computed with 1 earlier edit(s)" in lmedit("show", "two.safetensors").stdout
    on_base = lmedit("apply", "two.safetensors", "-m", model, "-O", "alone")
    assert on_base.exit_code == 0, on_base.stderr
    assert f"was computed with edit {first.id[:12]} in the model" in on_base.stderr
    on_top = lmedit("apply", "two.safetensors", "-m", "edited", "-O", "both")
    assert on_top.exit_code == 0, on_top.stderr
    assert "was computed with" not in on_top.stderr
    both = lmedit("apply", "one.safetensors", "two.safetensors", "-m", model, "-O", "at-once")
    assert "was computed with" not in both.stderr
    assert load_lm("both").digest == load_lm("at-once").digest
    gone = lmedit("revert", "both", "one.safetensors")
    assert gone.exit_code == 0
    assert "1 later edit(s) were computed with it" in gone.stderr


def test_the_memory_changes_the_next_edit(lmedit: Run, edit: Run, model: Path) -> None:
    seq = ("-o", "preset", "seq", "-o", "tolerance", "0.1")
    edit("one", *SUBJECTS[:2], options=seq)
    lmedit("apply", "one.safetensors", "-m", model, "-O", "edited")
    edit("with", *SUBJECTS[2:], on=Path("edited"), options=seq)
    edit("without", *SUBJECTS[2:], on=Path("edited"), options=("-o", "tolerance", "0.1"))
    with_it, without = (load_patch(Path(f"{n}.safetensors"))[0] for n in ("with", "without"))
    (site,) = [s for s in with_it.deltas if ".1." in s.parameter]
    keys = load_patch(Path("one.safetensors"))[0].carry["keys.1"]
    seen = [float((u.deltas[site].dense() @ keys).norm()) for u in (with_it, without)]
    assert seen[0] < seen[1]


def test_a_memory_of_other_layers_is_refused_by_name(lmedit: Run, edit: Run, model: Path) -> None:
    seq = ("-o", "preset", "seq", "-o", "tolerance", "0.1")
    edit("one", *SUBJECTS[:2], options=seq)
    lmedit("apply", "one.safetensors", "-m", model, "-O", "edited")
    other = (*seq, "-o", "layers", "[0,1]")
    edit("warm", *SUBJECTS[:1], options=other)  # so that these layers are prepared
    done = edit("two", *SUBJECTS[2:], on=Path("edited"), options=other)
    assert done.exit_code == 1
    assert "layers [1, 2], not [0, 1]" in done.stderr


def test_an_adapter_of_many_facts(lmedit: Run, edit: Run, model: Path) -> None:
    pytest.importorskip("peft")
    edit("many", *SUBJECTS[:2])
    done = lmedit("export", "many.safetensors", "-m", model, "-O", "adapter")
    assert done.exit_code == 0, done.stderr
    assert "rank 2" in done.stdout


def test_the_same_fact_twice_is_edited_once(edit: Run) -> None:
    done = edit("many", *SUBJECTS[:2], SUBJECTS[0])
    assert done.exit_code == 0
    assert "1 fact(s) occur twice" in done.stderr
    assert load_patch(Path("many.safetensors"))[1]["measured"]["facts"] == 2


def contradiction() -> Path:
    one, other = facts_file("a", SUBJECTS[:2]), facts_file("b", SUBJECTS[:1], "the river")
    path = Path("both.jsonl")
    path.write_text(one.read_text() + "\n" + other.read_text())
    return path


def test_memit_averages_a_contradiction_and_says_so(lmedit: Run, model: Path, text: Path) -> None:
    own = ("-m", model, "--corpus", text, "-O", "x.safetensors")
    done = lmedit("edit", "memit", "--facts", contradiction(), *own, *SHORT, "--force")
    assert done.exit_code == 0, done.stderr
    assert "'The tower is in the city of' has several new answers (the river, the sea)" in (
        done.stdout
    )


@pytest.mark.parametrize("method", ["ultraedit", "lora", "locft-bf"])
def test_every_joint_method_tells_a_contradiction(lmedit: Run, model: Path, method: str) -> None:
    short = ("-o", "epochs", "1") if method != "ultraedit" else ("-o", "layers", "[1]")
    own = ("-m", model, "-O", "x.safetensors", "--force", *short)
    done = lmedit("edit", method, "--facts", contradiction(), *own)
    assert done.exit_code == 0, done.stderr
    (told,) = [line for line in done.stdout.splitlines() if "several new answers" in line]
    assert told.startswith("'The tower is in the city of' has several new answers (the sea, the r")


def test_emmet_refuses_a_contradiction_by_name(lmedit: Run, model: Path, text: Path) -> None:
    own = ("-m", model, "--corpus", text, "-O", "x.safetensors")
    done = lmedit("edit", "emmet", "--facts", contradiction(), *own, "-o", "layer", "1", *SHORT[3:])
    assert done.exit_code == 1
    first, second = (f"'The tower is in the city of -> the {word}'" for word in ("sea", "river"))
    assert f"{first} and {second} have the same key" in done.stderr
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "was expected"),
        ("[]", "no case"),
        ('{"prompt": "{} is", "target_new": "x"}', "subject"),
        ('{"prompt": "A boat is", "target_new": "x"}', "fact 1 ('A boat is')"),
    ],
)
def test_bad_facts_are_one_line(
    lmedit: Run, model: Path, text: Path, lines: str, words: str
) -> None:
    Path("bad.jsonl").write_text(lines)
    done = lmedit("edit", "memit", "--facts", "bad.jsonl", "-m", model, "--corpus", text, *SHORT)
    assert done.exit_code == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_method_without_a_joint_update_is_refused_before_any_work(
    lmedit: Run, model: Path
) -> None:
    done = lmedit("edit", "rome", "--facts", facts_file("f", SUBJECTS), "-m", model)
    assert done.exit_code == 1
    assert "rome edits one fact at a time" in done.stderr


def test_one_fact_or_many_not_both(lmedit: Run, model: Path) -> None:
    done = lmedit("edit", "memit", "--facts", "f", "--prompt", "{} is", "-m", model)
    assert done.exit_code == 2
    assert "not both" in done.stderr


def test_an_edit_in_which_few_facts_took_writes_no_patch(
    lmedit: Run, model: Path, text: Path
) -> None:
    path = facts_file("f.jsonl", SUBJECTS[:3])
    done = lmedit(
        "edit",
        "memit",
        "--facts",
        path,
        "-m",
        model,
        "--corpus",
        text,
        *SHORT,
        "--json",
        "-o",
        "clamp",
        "0.001",
    )
    assert done.exit_code == 1
    assert "facts took" in done.stderr
    told = json.loads(done.stdout)
    assert told["patch"] is None
    assert told["measured"]["took"] < 2
    assert not list(Path().glob("*.safetensors"))


def test_more_facts_than_dimensions(
    lmedit: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MEMIT takes them; EMMET's exact answers do not exist, and the message tells the limit."""
    path = Path("wide.jsonl")
    lines = [
        {"prompt": "{} is in the city of", "subject": f"The {a} {b}", "target_new": "the sea"}
        for a in ("old", "small", "night", "river", "boat", "tower", "city", "home", "sea")
        for b in ("old", "small", "night", "river", "boat", "tower", "city", "home")
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    short = ("-o", "steps", "1", "-o", "prefixes", "[]", "-m", model, "--corpus", text)
    out = ("-O", "x.safetensors", "--force")
    done = lmedit("edit", "memit", "--facts", path, *short, "-o", "layers", "[1]", *out)
    assert done.exit_code == 0, done.stderr
    monkeypatch.delattr("lmedit.actions.edit_many._look")  # the refusal costs no look at the model
    done = lmedit("edit", "emmet", "--facts", path, *short, "-o", "layer", "1", *out)
    assert done.exit_code == 1
    assert "72 exact answers need as many dimensions, and the matrix has 64" in done.stderr


def test_the_update_of_a_folder_is_the_update_on_the_base_with_the_edits_in_it(
    lmedit: Run, edit: Run, model: Path
) -> None:
    """Law 11 through files: the same bits whether the first edit was kept in memory or loaded."""
    seq = ("-o", "preset", "seq", "-o", "tolerance", "0.1")
    edit("one", *SUBJECTS[:2], options=seq)
    lmedit("apply", "one.safetensors", "-m", model, "-O", "edited")
    for name in ("two", "again"):
        edit(name, *SUBJECTS[2:], on=Path("edited"), options=seq)
    two, again = (load_patch(Path(f"{n}.safetensors"))[0] for n in ("two", "again"))
    for site, delta in two.deltas.items():
        for part, tensor in delta.tensors().items():
            assert torch.equal(tensor, again.deltas[site].tensors()[part])
