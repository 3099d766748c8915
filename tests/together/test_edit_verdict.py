"""`lmedit edit` says whether the edit took; an edit that did not, or that damages, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_world import FACT

from lmedit import load_patch

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

QUESTION = ("--prompt", "Where is the tower?", "--target", "the sea")
HAMMER = """
import torch
from lmedit import Dense, Lm, Location, Method, Options, Update, hookimpl

class HammerOptions(Options):
    scale: float = 1.0

@hookimpl
def edit_describe() -> Method:
    return Method("hammer", "no paper", HammerOptions)

@hookimpl
def edit_locate(lm: Lm) -> Location:
    return Location((lm.mlp_out(2),))

@hookimpl
def edit_compute(lm: Lm, location: Location, options: HammerOptions) -> Update:
    (site,) = location.sites
    draw = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(lm.weight(site).shape, generator=draw, dtype=lm.working_dtype)
    return Update({site: Dense(options.scale * noise)})
"""


@pytest.fixture
def hammer(tmp_path: Path) -> Path:
    """A method that adds noise of any size to one matrix."""
    path = tmp_path / "hammer.py"
    path.write_text(HAMMER, encoding="utf-8")
    return path


def test_an_edit_that_did_not_take_writes_no_patch_without_force(lmedit: Run, model: Path) -> None:
    weak = ("edit", "ft", *FACT, "-m", model, "-o", "steps", "1", "-o", "learning_rate", "1e-6")
    done = lmedit(*weak, "-O", "p.safetensors")
    assert done.exit_code == 1
    assert "verdict: did not take" in done.stdout
    assert "did not take: after 'The tower is in the city of' the model writes" in done.stderr
    assert "no patch is written without --force" in done.stderr
    assert not Path("p.safetensors").exists()
    told = lmedit(*weak, "-O", "p.safetensors", "--json")
    assert told.exit_code == 1
    result = json.loads(told.stdout)
    assert (result["verdict"], result["patch"]) == ("did not take", None)
    assert result["refused"].startswith("the edit did not take")
    forced = lmedit(*weak, "-O", "p.safetensors", "--force")
    assert forced.exit_code == 0
    assert "--force: the patch is written, although the edit did not take" in forced.stderr
    metrics = load_patch(Path("p.safetensors"))[1]["metrics"]
    assert metrics["verdict"] == "did not take"
    assert metrics["after"]["writes"] == result["after"]["writes"]
    assert "verdict: did not take" in lmedit("show", "p.safetensors").stdout


def test_joint_and_per_token_are_told_apart(lmedit: Run, model: Path) -> None:
    done = lmedit("edit", "ft", *FACT, "-m", model, "--force", "--json")
    result = json.loads(done.stdout)
    n = result["target_tokens"]
    assert n > 1
    for look in (result["before"], result["after"]):
        assert look["target_new"] == pytest.approx(look["target_new_per_token"] ** n)
        assert look["target_true"] is None
    assert "(per token: " in lmedit("edit", "ft", *FACT, "-m", model, "--force").stdout


def test_a_subject_that_starts_the_text_gets_its_own_remedy(
    lmedit: Run, model: Path, hammer: Path
) -> None:
    """The first position of a text without BOS holds other states than a subject's."""
    named = HAMMER.replace("HammerOptions)", "HammerOptions, needs_subject=True)")
    hammer.write_text(named, encoding="utf-8")
    fact = ("--subject", "The", "--target", "the sea", "--join", "none")
    weak = ("edit", "hammer", "--plugin", hammer, "-m", model, "-o", "scale", "1e-6", *fact)
    first = lmedit(*weak, "--prompt", "{} tower is in")
    assert first.exit_code == 1
    assert "; try a prompt with words before the subject, " in first.stderr
    assert "joined without a blank" not in first.stdout  # the user asked for it
    later = lmedit(*weak, "--prompt", "I know: {} tower is in")
    assert later.exit_code == 1
    assert "words before the subject" not in later.stderr


def test_an_edit_that_damages_the_model_is_refused(lmedit: Run, model: Path, hammer: Path) -> None:
    hit = ("edit", "hammer", *FACT, "-m", model, "--plugin", hammer, "-O", "p.safetensors")
    done = lmedit(*hit, "-o", "scale", "3")
    assert done.exit_code == 1
    assert "the edit damages the model: " in done.stderr
    assert "words before the subject" in done.stderr
    assert "plain sentences" in done.stdout
    assert not Path("p.safetensors").exists()
    light = json.loads(lmedit(*hit, "-o", "scale", "1e-6", "--json").stdout)
    assert "damages" not in light["refused"]
    assert light["after"]["KL"] < 1e-3
    assert light["relative_norm"] < 1e-3
    heavy = json.loads(lmedit(*hit, "-o", "scale", "3", "--force", "--json").stdout)
    assert heavy["after"]["KL"] > light["after"]["KL"]
    assert Path("p.safetensors").is_file()


def test_the_typed_seed_is_in_the_patch(lmedit: Run, model: Path) -> None:
    edit = ("edit", "ft", *FACT, "-m", model, "--force", "-O", "p.safetensors")
    for flags in (("-o", "seed", "7"), ("--seed", "7"), ("--seed", "7", "-o", "seed", "7")):
        assert lmedit(*edit, *flags).exit_code == 0
        assert load_patch(Path("p.safetensors"))[1]["options"]["seed"] == 7
    done = lmedit(*edit, "-o", "seed", "7", "--seed", "8")
    assert "ft: -o seed 7 and --seed 8 differ" in done.stderr
    assert lmedit(*edit, "-o", "seed", "many").exit_code == 1


@pytest.mark.parametrize(
    ("fact", "culprit"),
    [
        ("", "--fact is empty"),
        ("[]", "one JSON object"),
        ('{"prompt": "{} is in", "subject": "The tower"}', "lacks target_new"),
        ('{"prompt": "{} is", "subject": "x", "target_new": "y", "target_true": "y"}', "already"),
    ],
)
def test_a_fact_is_checked_before_the_model_is_loaded(lmedit: Run, fact: str, culprit: str) -> None:
    for command in ("edit", "locate"):
        done = lmedit(command, "ft", "--fact", "-", "-m", "./nowhere", input=fact)
        assert done.exit_code == 1
        assert culprit in done.stderr
        assert "no model folder" not in done.stderr


@pytest.mark.parametrize("method", ["ft", "ft-l", "kn"])
def test_a_fact_without_a_subject_is_edited(lmedit: Run, model: Path, method: str) -> None:
    done = lmedit("edit", method, *QUESTION, "-m", model, "--force", "-O", "p.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "prompt: Where is the tower?" in done.stdout
    assert "names no subject; give --near FILE" in done.stdout
    assert load_patch(Path("p.safetensors"))[1]["request"]["subject"] is None
    assert "Where is the tower? -> the sea" in lmedit("show", "p.safetensors").stdout
    assert lmedit("apply", "p.safetensors", "-m", model, "-O", "edited").exit_code == 0
    assert "Where is the tower? -> the sea" in lmedit("log", "edited").stdout


def test_a_method_that_needs_a_subject_says_so_before_it_prepares(
    lmedit: Run, model: Path, text: Path
) -> None:
    for command, corpus in (("edit", ("--corpus", text)), ("locate", ())):
        done = lmedit(command, "rome", *QUESTION, "-m", model, *corpus)
        assert done.exit_code == 1
        assert "rome edits at the place of the subject" in done.stderr
        assert "--subject auto" in done.stderr
        assert "preparing" not in done.stderr


def test_questions_and_answers_are_compared(lmedit: Run, model: Path, text: Path) -> None:
    lines = [
        {"prompt": "Where is the tower?", "target_new": "the sea", "target_true": "the river"},
        {
            "prompt": "{} stands in",
            "subject": "The tower",
            "target_new": "the sea",
            "target_true": "the river",
        },
    ]
    Path("qa.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = lmedit(
        "compare",
        "ft",
        "rome",
        "--cases",
        "qa.jsonl",
        "-m",
        model,
        "--json",
        "--run",
        "run",
        "--corpus",
        text,
        "--metrics",
        "all",
        "--heldout",
        text,
        "-o",
        "rome.decay",
        0,
    )
    assert done.exit_code == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["ft"]["n_failed"] == 0
    assert rows["rome"]["n_failed"] == 1
    assert lmedit("report", "run", "--html", "page.html").exit_code == 0
    assert "Where is the tower?" in Path("page.html").read_text(encoding="utf-8")


def test_neighbours_of_a_file_are_shown(lmedit: Run, model: Path, cases: Path) -> None:
    Path("near.txt").write_text("The boat is in\nThe inn is in\n", encoding="utf-8")
    done = lmedit("edit", "ft", *FACT, "-m", model, "--force", "--near", "near.txt")
    assert "neighbour: The boat is in\n" in done.stdout
    assert "neighbour 2: The inn is in\n" in done.stdout
    assert "of 2 keep their top token" in done.stdout
    done = lmedit("edit", "ft", *FACT, "-m", model, "--force", "--near", cases)
    assert "neighbour: The boat is in the city of\n" in done.stdout
    assert "paraphrase: In the morning. The tower stands in\n" in done.stdout
    missing = lmedit("edit", "ft", *FACT, "-m", model, "--near", "nothing.txt")
    assert missing.exit_code == 1
    assert "nothing.txt" in missing.stderr


@pytest.mark.slow
def test_the_embedded_model_proposes_the_subject_and_shows_neighbours(lmedit: Run) -> None:
    prompt = ("--prompt", "The Eiffel Tower is in the city of", "--target", " Rome ")
    done = lmedit("edit", "ft", *prompt, "--subject", "auto", "-O", "p.safetensors")
    assert done.exit_code == 0, done.output
    assert "subject: 'The Eiffel Tower' is taken" in done.stderr
    assert "runners-up" in done.stderr
    assert "the value is 'Rome'" in done.stderr
    assert "verdict: took (the model now writes the whole target)" in done.stdout
    for kind in ("paraphrase", "neighbour", "neighbour 2", "another fact"):
        assert f"\n{kind}: " in done.stdout
    assert "lines of heldout.txt" in done.stdout
    again = lmedit("edit", "ft", *prompt, "-O", "q.safetensors")
    assert load_patch(Path("q.safetensors"))[1]["request"]["target_new"] == "Rome"
    assert again.exit_code == 0


def test_a_failed_edit_of_several_tokens_points_to_the_objective_for_them(
    lmedit: Run, model: Path
) -> None:
    weak = ("edit", "ft", *FACT, "-m", model, "-o", "steps", "1", "-o", "learning_rate", "1e-6")
    told = lmedit(*weak).stderr
    assert "try -o preset ft-m (it trains each token of the answer behind those before it)" in told
    assert "-o layer VALUE" in told
    assert "ft-m" not in lmedit(*weak, "-o", "preset", "ft-m").stderr
    one = (*weak[:6], "--target", "s", *weak[8:])
    assert one[6:8] == ("--target", "s")
    assert "ft-m" not in lmedit(*one).stderr
