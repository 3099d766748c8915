"""Bad input fails before a model is loaded, and flags that would not be used are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from click.testing import Result

from lmedit import plan
from lmedit.actions.tune import Tuning, in_words
from lmedit.cases import cases_given
from lmedit.compare.tuning import edits_of
from lmedit.edits import model_folders
from lmedit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., Result]
FACT = ("--prompt", "{} is in", "--subject", "It", "--target", "Rome")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error of the test, not an exit code."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(plan, "load_lm", load)
    monkeypatch.setattr(model_folders, "load_lm", load)


BAD = {
    "empty fact": (("edit", "ft", "--fact", "-"), "--fact is empty"),
    "blank subject": (("edit", "ft", *FACT[:2], "--subject", " ", *FACT[4:]), "subject is blank"),
    "no method": (("edit", "rom", *FACT), "did you mean 'rome'"),
    "no option": (("edit", "ft", *FACT, "-o", "layr", "1"), "did you mean 'layer'"),
    "no number": (("edit", "ft", *FACT, "-o", "steps", "many"), "steps"),
    "no layer": (("edit", "ft", *FACT, "-o", "layer", "99"), "has no layer 99"),
    "no preset": (("edit", "rome", *FACT, "-o", "preset", "papr"), "did you mean 'paper'"),
    "no options file": (("edit", "ft", *FACT, "-o", "@none.json"), "cannot read options file"),
    "two seeds": (("edit", "ft", *FACT, "-o", "seed", "1", "--seed", "2"), "differ; give one"),
    "no near": (("edit", "ft", *FACT, "--near", "none.txt"), "none.txt"),
    "no device": (("edit", "ft", *FACT, "--device", "tpu9"), "no device 'tpu9'"),
    "no corpus": (("edit", "rome", *FACT, "--corpus", "none"), "no corpus 'none'"),
    "corpus of nobody": (("edit", "ft", *FACT, "--corpus", "ft=demo"), "needs no preparation"),
    "corpus of another": (("edit", "ft", *FACT, "--corpus", "rome=demo"), "rome"),
    "no statistics": (("edit", "rome", *FACT, "--corpus", "stats:none"), "no statistics begin"),
    "system alone": (("edit", "ft", *FACT, "--system", "Be short."), "give --chat too"),
    "no template": (("edit", "ft", *FACT, "--chat"), "has no chat template"),
    "unknown name": (("edit", "ft", "--fact", "colour.json"), "'colour' is not a value of a fact"),
    "locate: no facts": (("locate", "rome", "--facts", "none"), "no cases 'none'"),
    "locate: fact and facts": (
        ("locate", "rome", *FACT, "--facts", "demo"),
        "--prompt is not used",
    ),
    "locate: probe": (("locate", "rome", "--probe", "--facts", "demo"), "--probe is not used"),
    "locate: limit": (("locate", "rome", *FACT, "--limit", "3"), "--limit is for --facts"),
    "locate: pooling": (("locate", "rome", *FACT, "--pooling", "notebook"), "is for --facts"),
    "locate: plot": (("locate", "rome", *FACT, "--plot", "a.doc"), "a.doc"),
    "compare: no cases": (("compare", "ft", "--cases", "none"), "no cases 'none'"),
    "compare: heldout": (("compare", "ft", "--heldout", "a.txt"), "only with --metrics health"),
    "compare: lines": (("compare", "ft", "--heldout-lines", "3"), "only with --metrics health"),
    "compare: references": (("compare", "ft", "--references", "a"), "only with --metrics text"),
    "compare: sizes": (("compare", "ft", "--sizes", "1,2"), "only with another --regime"),
    "compare: collapse": (("compare", "ft", "--collapse", "3"), "only with another --regime"),
    "compare: stop": (("compare", "ft", "--stop-on-collapse"), "only with another --regime"),
    "compare: no heldout": (
        ("compare", "ft", "--metrics", "health", "--heldout", "none.txt"),
        "does not exist; give its path",
    ),
    "compare: large size": (
        ("compare", "ft", "--limit", "2", "--regime", "batch", "--sizes", "9"),
        "there are 2 cases",
    ),
    "compare: random layer": (("compare", "ft", "--random-layer", "mend"), "no option layer"),
    "compare: corpus": (("compare", "ft", "mend", "--corpus", "demo"), "name the method, as mend="),
    "tune: no cases": (("tune", "ft", "--cases", "none"), "no cases 'none'"),
    "tune: budget": (("tune", "ft", "--budget", "soon"), "'soon' is not a time"),
    "tune: no budget": (("tune", "ft", "--budget", "0m"), "'0m' is not a time"),
    "prepare: layers": (("prepare", "rome", "--layers", "3,x"), "give numbers"),
    "prepare: no layer": (("prepare", "rome", "--layers", "3,99"), "has no layer 99"),
    "prepare: limit": (("prepare", "rome", "--limit", "3"), "option 'limit'"),
    "prepare: plot": (("prepare", "rome", "--plot", "a.svg"), "--plot is for methods that train"),
    "prepare: chat": (("prepare", "rome", "--chat"), "--chat is for methods that train"),
    "prepare: join": (("prepare", "rome", "--join", "none"), "--join is for methods that train"),
    "plan: corpus": (("plan", "rome", "--corpus", "demo"), "does not change the estimate"),
    "stats: layer": (("stats", "import", "a.safetensors", "--layer", "3"), "is for .npz files"),
    "export: no patch": (("export", "none.safetensors", "-O", "a"), "none.safetensors"),
    "apply: no patch": (("apply", "none.safetensors", "-O", "a"), "none.safetensors"),
    "hint: layer": (("edit", "ft", *FACT, "--layer", "3"), "-o layer VALUE"),
    "hint: rate": (("edit", "ft", *FACT, "--learning-rate", "1"), "-o learning_rate VALUE"),
    "hint: preset": (("edit", "rome", *FACT, "--preset", "paper"), "-o preset NAME"),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_fails_before_a_model_is_loaded(
    name: str, lmedit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fact = {"prompt": "{} is in", "subject": "It", "target_new": "Rome", "colour": "red"}
    (tmp_path / "colour.json").write_text(json.dumps(fact), encoding="utf-8")
    arguments, words = BAD[name]
    if name == "no template":
        monkeypatch.undo()  # only the tokenizer is loaded, before the weights
    done = lmedit(*arguments)
    assert done.exit_code in {1, 2}, done.output
    assert not isinstance(done.exception, AssertionError)
    assert words in done.stderr
    assert done.stderr.strip().count("\n") <= 3, "one line, and click's usage"


def test_a_patch_names_its_base(lmedit: Run, model: Path) -> None:
    """Without -m, apply takes the base of the patch; its digest is checked."""
    flags = (*FACT[:2], "--subject", "The tower", *FACT[4:], "--force", "-O", "edit.safetensors")
    assert lmedit("edit", "ft", "-m", model, *flags).exit_code == 0
    done = lmedit("apply", "edit.safetensors", "-O", "edited")
    assert done.exit_code == 0, done.stderr
    assert f"the base is {model}, as the patch says" in done.stderr
    wrong = lmedit("apply", "edit.safetensors", "-O", "other", "-m", "demo")
    assert wrong.exit_code == 1
    assert "demo" in wrong.stderr


def test_the_budget_chooses_settings_that_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_given([{"prompt": f"Fact {n} is", "target_new": "so"} for n in range(6)])
    settings = tuple({"layer": n} for n in range(30))
    tuning = Tuning(None, cases, {}, (), settings)  # type: ignore[arg-type]
    monkeypatch.setattr(Tuning, "trial_seconds", lambda _: 1.0)
    notes: list[str] = []
    assert tuning.within(None, 1, notes.append).settings == settings
    assert notes == [
        "30 settings, 6 cases: at most about 90 s (1.00 s per edit and its scores)".replace(
            "90 s", in_words(edits_of(30, 6))
        )
    ]
    assert edits_of(30, 6) == 30 * 2 + 3 * 6 + 2 * 6
    fewer = tuning.within(40.0, 1, notes.append).settings
    assert [each["layer"] for each in fewer] == [0, 7, 14, 22, 29]
    assert notes[-1].startswith("5 settings of 30, as --budget allows, 6 cases: at most about 40 s")
    assert len(tuning.within(40.0, 2, notes.append).settings) == 25
    with pytest.raises(UsageError, match="2 settings on 6 cases take about 28 s"):
        tuning.within(20.0, 1, notes.append)


def test_tune_tells_an_estimate_and_keeps_to_its_settings(
    lmedit: Run, model: Path, cases: Path
) -> None:
    flags = ("-m", model, "--cases", cases, "--limit", 3, "-o", "steps", 1, "--run", "run")
    done = lmedit("tune", "ft", *flags, "-o", "learning_rate", 0.01, "--budget", "2h", "--json")
    assert done.exit_code == 0, done.stderr
    assert "settings, 3 cases: at most about" in done.stderr
    evidence = json.loads(done.stdout)["evidence"]
    assert evidence["settings_tried"] == evidence["settings_of_method"] == len(evidence["heat"])


def test_a_corpus_that_is_not_used_is_told(lmedit: Run, model: Path, text: Path) -> None:
    done = lmedit("locate", "ft", "-m", model, "--corpus", text, *FACT)
    assert "--corpus is not used: ft needs no preparation" in done.stderr


REFUSED = (
    ("torch", ("edit", "ft", "--prompt", "{} is in", "--target", "Rome", "--subject", " ")),
    ("torch", ("edit", "ft", "--subject", "It")),
    ("torch", ("edit", "ft", *FACT, "--limit", "3")),
    ("torch", ("edit", "ft", "--fact", "empty.json")),
    ("transformers", ("edit", "ft", *FACT, "-o", "layer", "99")),
    ("transformers", ("edit", "memit", *FACT, "-o", "layers", "[1,99]")),
    ("transformers", ("prepare", "rome", "--layers", "1,99")),
    ("transformers", ("edit", "rom", *FACT)),
    ("transformers", ("edit", "rome", *FACT, "-o", "step", "3")),
    ("transformers", ("edit", "rome", *FACT, "-o", "steps", "-3")),
    ("transformers", ("edit", "rome", *FACT, "--chat")),
    ("transformers", ("edit", "rome", *FACT, "-m", "./nowhere")),
    ("transformers", ("edit", "rome", *FACT, "-m", "nowhere")),
    ("transformers", ("edit", "rome", *FACT, "--device", "tpu9")),
    ("transformers", ("edit", "rome", *FACT, "--corpus", "none")),
    ("transformers", ("compare", "ft", "--cases", "none")),
    ("transformers", ("tune", "ft", "--cases", "none")),
    ("transformers", ("locate", "rome", *FACT, "--plot", "a.doc")),
)
"""Command lines that are refused, and the library that the refusal does not import."""


def test_refusals_import_no_heavy_library(tmp_path: Path) -> None:
    """torch takes some 2 s of CPU, and transformers one more; so a refusal does without."""
    (tmp_path / "empty.json").write_text("", encoding="utf-8")
    script = (
        "import json, sys\n"
        "from lmedit.cli import main\n"
        "for library, arguments in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(arguments)\n"
        "        raise AssertionError(arguments)\n"
        "    except SystemExit as end:\n"
        "        assert end.code in (1, 2), arguments\n"
        "    assert library not in sys.modules, (library, arguments)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(REFUSED)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
