"""Bad input gets one clear line, exit code 1 or 2, and loses nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from small_world import FACT, record, save_model

from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    """One line on stderr that holds all *words*, a non-zero code, nothing on stdout."""
    assert result.exit_code in (1, 2), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]
    assert result.stdout == ""


def test_unknown_method_names_the_nearest(lmedit: Run, model: Path) -> None:
    refused(lmedit("edit", "rom", *FACT, "-m", model), "no method 'rom'", "did you mean 'rome'")


def test_unknown_option_names_the_nearest(lmedit: Run, model: Path) -> None:
    done = lmedit("edit", "ft", *FACT, "-m", model, "-o", "learning-rate", "1")
    refused(done, "ft: no option 'learning-rate'", "did you mean 'learning_rate'")


def test_an_option_value_is_checked(lmedit: Run, model: Path) -> None:
    refused(lmedit("edit", "ft", *FACT, "-m", model, "-o", "steps", "none"), "ft: steps")


@pytest.mark.parametrize("value", ["-1", "true", "1.5", "1.0", "null", "seven", "[7]", str(2**64)])
def test_a_nonsense_seed_is_refused(lmedit: Run, model: Path, value: str) -> None:
    refused(lmedit("edit", "ft", *FACT, "-m", model, "-o", "seed", value), "ft: seed")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_an_option_is_a_finite_number(lmedit: Run, model: Path, value: str) -> None:
    done = lmedit("edit", "ft", *FACT, "-m", model, "-o", "learning_rate", value)
    refused(done, "ft: learning_rate")


def test_unknown_preset(lmedit: Run, model: Path) -> None:
    refused(lmedit("edit", "ft", *FACT, "-m", model, "-o", "preset", "papr"), "'paper'")


def test_a_layer_the_model_lacks(lmedit: Run, model: Path) -> None:
    refused(lmedit("edit", "ft", *FACT, "-m", model, "-o", "layer", "40"), "no layer 40", "0 to 3")


def test_target_equal_to_the_given_answer(lmedit: Run, model: Path) -> None:
    refused(lmedit("edit", "ft", *FACT, "--target-true", "the sea", "-m", model), "already")


def test_target_equal_to_what_the_model_says(lmedit: Run, tmp_path: Path) -> None:
    lm = tiny_lm()
    (token,) = lm.with_target("The tower is in the city of", "the")[1]
    norm = lm.model.transformer.ln_f
    norm.weight.zero_()
    norm.bias.copy_(100 * lm.model.transformer.wte.weight[token])  # it says nothing but "the"
    lm.model.float().save_pretrained(tmp_path / "stubborn")
    lm.tokenizer.save_pretrained(tmp_path / "stubborn")
    for method in ("ft", "rome"):
        done = lmedit("edit", method, *FACT[:4], "--target", "the", "-m", tmp_path / "stubborn")
        refused(done, "already answers 'the'", "give another --target")
        assert "preparing" not in done.stderr  # statistics may take minutes
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("prompt", ["{} is in {}", "{} and {} {}"])
def test_two_fold_place(lmedit: Run, model: Path, prompt: str) -> None:
    done = lmedit("edit", "ft", "--prompt", prompt, *FACT[2:], "-m", model)
    refused(done, "exactly once")


def test_subject_not_in_the_prompt_shows_what_was_tried(lmedit: Run, model: Path) -> None:
    done = lmedit("edit", "ft", "--prompt", "The boat is in", *FACT[2:], "-m", model)
    refused(done, "does not contain the subject 'The tower' exactly once", "tokens")


def test_missing_parts_of_a_fact(lmedit: Run, model: Path) -> None:
    refused(lmedit("edit", "ft", "--subject", "The tower", "-m", model), "lacks prompt, target_new")


@pytest.mark.parametrize("fact", ["{", "[]", '{"prompt": 3, "subject": "a", "target_new": "b"}'])
def test_a_fact_that_is_no_fact(lmedit: Run, model: Path, fact: str) -> None:
    refused(lmedit("edit", "ft", "--fact", "-", "-m", model, input=fact))


def test_missing_model_folder(lmedit: Run) -> None:
    refused(lmedit("edit", "ft", *FACT, "-m", "./nowhere"), "no model folder './nowhere'")


def test_a_model_that_was_not_downloaded(lmedit: Run) -> None:
    refused(lmedit("edit", "ft", *FACT, "-m", "some-hub-model"), "--download", "demo")


@pytest.mark.parametrize("damage", ["truncate", "weights", "config", "tokenizer"])
def test_damaged_model_folder(lmedit: Run, tmp_path: Path, damage: str) -> None:
    folder = save_model(tmp_path / "broken", seed=1)
    if damage == "truncate":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    else:
        names = {"weights": "model.safetensors", "config": "config.json"}
        for file in folder.glob(names.get(damage, "tokenizer*")):
            file.unlink()
    refused(lmedit("edit", "ft", *FACT, "-m", folder), str(folder))


def test_a_method_that_is_trained_and_was_not(lmedit: Run, model: Path) -> None:
    done = lmedit("edit", "mend", *FACT, "-m", model)
    refused(done, "mend is not prepared for this model", "lmedit prepare mend")


def test_statistics_of_another_model(lmedit: Run, model: Path, text: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=2)
    paths = [
        json.loads(lmedit("prepare", "rome", "-m", m, "--corpus", text, "--json").stdout)["path"]
        for m in (model, other)
    ]
    shutil.copy(paths[0], paths[1])
    done = lmedit("edit", "rome", *FACT, "-m", other, "--corpus", text)
    refused(done, "prepared for base", "prepare again")


def test_damaged_statistics(lmedit: Run, model: Path, text: Path) -> None:
    kept = lmedit("prepare", "rome", "-m", model, "--corpus", text, "--json")
    path = Path(json.loads(kept.stdout)["path"])
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    refused(lmedit("edit", "rome", *FACT, "-m", model, "--corpus", text), "checksum")


def test_too_little_text(lmedit: Run, model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("The tower.\n")
    done = lmedit("prepare", "rome", "-m", model, "--corpus", short)
    assert done.exit_code == 1
    assert "too few" in done.stderr
    assert "ridge" in done.stderr


def test_a_broken_record_is_named_and_counted_and_the_others_run(
    lmedit: Run, model: Path, tmp_path: Path
) -> None:
    broken = record(1)
    del broken["requested_rewrite"]["target_new"]
    path = tmp_path / "cases.json"
    rows = ",\n".join(json.dumps(r) for r in (record(0), broken, record(2)))
    path.write_text(f"[\n{rows}\n]")
    done = lmedit("compare", "ft", "--cases", path, "-m", model, "--json")
    assert done.exit_code == 0
    base, ft = json.loads(done.stdout)["rows"]
    assert (base["n"], base["n_failed"], ft["n"], ft["n_failed"]) == (3, 1, 3, 1)
    assert "line 3, case 1: field 'target_new' is missing" in done.stderr


def test_a_cut_cases_file(lmedit: Run, model: Path, cases: Path) -> None:
    cases.write_text(cases.read_text()[:-200])
    done = lmedit("compare", "ft", "--cases", cases, "-m", model, "--json")
    assert json.loads(done.stdout)["rows"][1]["n_failed"] == 1
    assert "not JSON from here on" in done.stderr


@pytest.mark.parametrize("content", ["", "{}", "3", "not json", "[]"])
def test_a_file_without_cases(lmedit: Run, model: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "cases.json"
    path.write_text(content)
    said = "the keys of a known layout" if content == "{}" else "list of records"
    refused(lmedit("compare", "ft", "--cases", path, "-m", model), said)


def test_no_such_cases(lmedit: Run, model: Path) -> None:
    refused(lmedit("compare", "ft", "--cases", "nope.json", "-m", model), "no cases 'nope.json'")


def test_a_plugin_file_that_breaks(lmedit: Run, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("raise RuntimeError('no good')")
    refused(lmedit("show", "bad", "--plugin", bad), "bad.py", "no good")


def test_unwritable_patch_leaves_nothing(lmedit: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "edit.safetensors"
    refused(lmedit("edit", "ft", *FACT, "-m", model, "-O", out, "--force"), "cannot write")


def test_the_model_on_disk_is_never_changed(lmedit: Run, model: Path, cases: Path) -> None:
    def digest() -> str:
        files = sorted(model.iterdir())
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    before = digest()
    lmedit("edit", "ft", *FACT, "-m", model)
    lmedit("compare", "ft", "--cases", cases, "-m", model)
    assert digest() == before


WORLDS = {
    "raise OSError('no disk')": "(OSError: no disk)",
    "import sys; sys.exit(3)": "(SystemExit: 3)",
    "world = 3": "(TypeError: it is module, not World)",
    "import os; os._exit(3)": "(its process ended with code 3)",
    "import os; os.kill(os.getpid(), 9)": "(its process was ended by SIGKILL)",
    "while True: pass": "(its import took more than 2 s)",
    "import os\nif not os.fork(): os._exit(3)": "(TypeError: it is module, not World)",
}
"""The code of a broken world, and what its line says."""


@pytest.mark.parametrize("code", WORLDS)
def test_a_broken_world_breaks_only_itself(
    install: Callable[..., None],
    lmedit: Run,
    model: Path,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "while" in code:
        monkeypatch.setattr("lmedit.models.installed_worlds.SECONDS", 2.0)
    install("broken", code, group="lmedit.worlds")
    assert lmedit("locate", "ft", *FACT, "-m", model).exit_code == 0
    line = f"the world 'broken' cannot be loaded {WORLDS[code]}"
    refused(lmedit("locate", "ft", *FACT, "-m", "broken"), line)
    told = json.loads(lmedit("doctor", "--json").stdout)
    assert line in told["worlds"]["broken"]
    assert not told["worlds"]["demo"].startswith("broken")


def test_a_world_of_another_project_is_used_without_its_code(
    install: Callable[..., None], lmedit: Run, model: Path, tmp_path: Path
) -> None:
    """Its values come from a process of its own, so its code changes nothing here."""
    text = tmp_path / "text.txt"
    text.write_text("The sea is near the tower.\n", encoding="utf-8")
    code = (
        "import torch\nfrom pathlib import Path\nfrom lmedit import World\n"
        "torch.set_default_dtype(torch.float64)\nprint('hello')\n"
        f"world = World(model=Path({str(model)!r}), cases=Path({str(text)!r}), "
        f"text=Path({str(text)!r}), heldout=Path({str(text)!r}))\n"
    )
    install("other", code, group="lmedit.worlds", value="toy_other:world")
    done = lmedit("locate", "ft", *FACT, "-m", "other", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["sites"]
    assert torch.get_default_dtype() == torch.float32
