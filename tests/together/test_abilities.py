"""Abilities of lm-evaluation-harness: on the base, beside the weights, in runs and in gates."""

from __future__ import annotations

import json
import math
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_world import FACT

from lmedit import Lm, LowRank, Update, load_lm, save_patch
from lmedit.actions.abilities import rows_under
from lmedit.edits.ledger import applied, base_of
from lmedit.edits.model_folders import read_log
from lmedit.errors import RequestError
from lmedit.metrics.abilities import Abilities
from lmedit.metrics.ability_differences import ability_differences
from lmedit.metrics.ability_tasks import Wanted, load_tasks
from lmedit.metrics.teacher_forcing import score_targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

pytest.importorskip("lm_eval", reason="pip install 'lmedit[abilities]'")
ROOT = Path(__file__).parents[2]
TASKS = ("demo_choice", "demo_cloze")
REQUEST = {"prompt": "{} is in the city of", "subject": "The tower", "target_new": "the sea"}


def script() -> Any:
    spec = spec_from_file_location("ability_tasks", ROOT / "worlds" / "ability_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    assert script().write_tasks("demo", folder, 4, 6) == list(TASKS)
    return folder


@pytest.fixture(scope="module")
def lm(model: Path) -> Lm:
    return load_lm(str(model))


@pytest.fixture(scope="module")
def abilities(lm: Lm, tasks: Path) -> Abilities:
    return Abilities(lm, Wanted(TASKS, tasks))


def change(lm: Lm, size: float = 3.0) -> Update:
    site = lm.mlp_out(1)
    draw = torch.Generator().manual_seed(0)
    rows, columns = lm.weight(site).shape
    left = size * torch.randn(rows, 1, generator=draw)
    return Update({site: LowRank(left, torch.randn(1, columns, generator=draw))})


def documents(tasks: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tasks / "demo.jsonl").read_text().splitlines()]


def by_hand(lm: Lm, tasks: Path) -> tuple[list[float], list[float]]:
    """Right choices, and log P of the answers, from the scorer of this project."""
    right, logs = [], []
    for each in documents(tasks):
        pairs = [(each["prompt"], choice) for choice in each["choices"]]
        sums = [
            score.log_probability * len(lm.with_target(*pair)[1])
            for score, pair in zip(score_targets(lm, pairs), pairs, strict=True)
        ]
        right.append(float(sums.index(max(sums)) == each["label"]))
        logs.append(sums[each["label"]])
    return right, logs


def test_the_harness_and_our_scorer_agree(lm: Lm, tasks: Path, abilities: Abilities) -> None:
    update = change(lm)
    digest = lm.weights_digest()
    was_right, was = by_hand(lm, tasks)
    with rows_under(lm, update) as under:
        assert under is not None
        after = abilities.measure(under)
    with applied(lm, update):
        now_right, now = by_hand(lm, tasks)
        in_weights = abilities.measure()
    assert lm.weights_digest() == digest
    assert abilities.base["demo_choice"]["acc"] == was_right
    assert after["demo_choice"]["acc"] == now_right == in_weights["demo_choice"]["acc"]
    assert abilities.base["demo_cloze"]["perplexity"] == pytest.approx(was, rel=1e-4)
    assert after["demo_cloze"]["perplexity"] == pytest.approx(now, rel=1e-4)
    assert in_weights["demo_cloze"]["perplexity"] == pytest.approx(now, rel=1e-4)
    found = ability_differences(abilities, [after])
    cloze = found["demo_cloze"]["perplexity"]
    assert cloze["base"] == pytest.approx(math.exp(-sum(was) / len(was)), rel=1e-4)
    assert cloze["edited"] == pytest.approx(math.exp(-sum(now) / len(now)), rel=1e-4)
    assert cloze["difference"] == pytest.approx(cloze["edited"] - cloze["base"])
    assert abilities.first_differences(after)["demo_cloze"] == cloze["difference"]
    assert abs(cloze["difference"]) > 0.01 * cloze["base"]
    assert cloze["low"] < cloze["difference"] < cloze["high"]
    choice = found["demo_choice"]["acc"]
    assert choice["difference"] == pytest.approx((sum(now_right) - sum(was_right)) / 6)
    same = ability_differences(abilities, [abilities.base])["demo_cloze"]["perplexity"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert abilities.measure() == abilities.base


def test_intervals_are_paired_over_documents(abilities: Abilities) -> None:
    base = abilities.base
    shifted = {name: {m: list(v) for m, v in of.items()} for name, of in base.items()}
    shifted["demo_cloze"]["perplexity"] = [v - 0.1 for v in base["demo_cloze"]["perplexity"]]
    shifted["demo_choice"]["acc"] = [1.0] * 6
    base_acc = base["demo_choice"]["acc"]
    found = ability_differences(abilities, [shifted, base])
    each = found["demo_choice"]["acc"]
    assert (each["documents"], each["edits"]) == (6, 2)
    assert each["difference"] == pytest.approx((6 - sum(base_acc)) / 6 / 2)
    cloze = found["demo_cloze"]["perplexity"]
    assert cloze["difference"] == pytest.approx(cloze["base"] * (math.exp(0.1) - 1) / 2)
    assert 0 < cloze["low"] <= cloze["high"]
    assert abilities.first_differences(shifted)["demo_cloze"] == pytest.approx(
        cloze["base"] * (math.exp(0.1) - 1)
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_an_exported_adapter_has_the_same_values_in_the_harness(
    lmedit: Run, lm: Lm, model: Path, tasks: Path
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    update = change(lm)
    facts = {"method": "test", "model": base_of(lm, update), "request": REQUEST}
    save_patch(Path("one.safetensors"), update, facts)
    wanted = ("--tasks", ",".join(TASKS), "--include-path", tasks)
    told = lmedit("abilities", "one.safetensors", "-m", model, *wanted, "--json")
    assert told.exit_code == 0, told.stderr
    (ours,) = json.loads(told.stdout)["models"]
    done = lmedit("export", "one.safetensors", "-m", model, "-O", "adapter")
    assert done.exit_code == 0, done.stderr
    theirs = HFLM(pretrained=str(model), peft="adapter", device="cpu", dtype="float32")
    found = evaluate(theirs, {"tasks": load_tasks(Wanted(TASKS, tasks))[0]}, bootstrap_iters=0)
    acc = found["results"]["demo_choice"]["acc,none"]
    perplexity = found["results"]["demo_cloze"]["perplexity,none"]
    assert ours["abilities"]["demo_choice"]["acc"]["edited"] == pytest.approx(acc)
    assert ours["abilities"]["demo_cloze"]["perplexity"]["edited"] == pytest.approx(
        perplexity, rel=1e-4
    )
    text = lmedit("abilities", "one.safetensors", "-m", model, *wanted).stdout
    assert re.search(r"one +demo_choice +acc +6 ", text)
    lmedit("apply", "one.safetensors", "-m", model, "-O", "edited")
    folder = json.loads(lmedit("abilities", "edited", *wanted, "--json").stdout)
    assert [each["model"] for each in folder["models"]] == ["with its edits"]
    assert folder["base"] == json.loads(told.stdout)["base"]
    assert folder["models"][0]["abilities"]["demo_choice"] == ours["abilities"]["demo_choice"]


def test_a_comparison_has_abilities(lmedit: Run, model: Path, cases: Path, tasks: Path) -> None:
    asked = ("--abilities", "demo_choice,demo_cloze", "--include-path", tasks)
    ours = ("compare", "ft", "-m", model, "--cases", cases, "-o", "layer", 1, "-o", "steps", 2)
    done = lmedit(*ours, *asked, "--ability-limit", 4, "--run", "run")
    assert done.exit_code == 0, done.stderr
    results = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    assert results["abilities"]["tasks"]["demo_choice"]["documents"] == 4
    base, ft = results["rows"]
    assert base["abilities"]["demo_choice"]["acc"]["edited"] is None
    found = ft["abilities"]["demo_cloze"]["perplexity"]
    assert (found["documents"], found["edits"]) == (4, 3)
    assert found["difference"] != 0
    assert re.search(r"ft +demo_choice +acc +4 ", done.stdout)
    assert lmedit("report", "run", "--html", "page.html").exit_code == 0
    assert "Tasks of the lm-evaluation-harness" in Path("page.html").read_text(encoding="utf-8")
    words = Path("held.txt")
    words.write_text("The tower is in the city\nThe boat is in the river\n", encoding="utf-8")
    pile = ("--regime", "sequential", "--sizes", "1,3", "--heldout", words, "--run", "pile")
    piled = lmedit(*ours, *asked, "--ability-limit", 4, *pile, "--metrics", "health")
    assert piled.exit_code == 0, piled.stderr
    results = json.loads(Path("pile/results.json").read_text(encoding="utf-8"))
    first, last = (point["abilities"]["demo_cloze"]["perplexity"] for point in results["curve"])
    assert results["rows"][1]["abilities"]["demo_cloze"]["perplexity"] == last
    assert (first["edits"], last["edits"]) == (1, 1)
    assert first["difference"] != last["difference"]


def test_a_gate_on_abilities(
    lmedit: Run, lm: Lm, model: Path, tasks: Path, abilities: Abilities
) -> None:
    moved = {}
    for name, size in (("light", 1e-4), ("heavy", 30.0)):
        update = change(lm, size)
        facts = {"method": "test", "model": base_of(lm, update), "request": REQUEST}
        save_patch(Path(f"{name}.safetensors"), update, facts)
        with rows_under(lm, update) as under:
            moved[name] = abilities.first_differences(abilities.measure(under))["demo_cloze"] or 0.0
    middle = (moved["light"] + moved["heavy"]) / 2
    sign, other = "<>" if moved["light"] < middle else "><"
    gate = f"abilities.demo_cloze{sign}{middle:g}, abilities.demo_choice:acc>-0.01"
    flags = ("-m", model, "-O", "out", "--gate", gate, "--include-path", tasks)
    done = lmedit("apply", "heavy.safetensors", *flags)
    assert done.exit_code == 1
    assert "out is not written: it fails the gate: abilities.demo_cloze " in done.stderr
    assert not Path("out").exists()
    done = lmedit("apply", "light.safetensors", *flags)
    assert done.exit_code == 0, done.stderr
    told = read_log(Path("out"))["gate"]
    assert told["values"]["abilities.demo_cloze"] == pytest.approx(moved["light"], rel=1e-3)
    assert told["values"]["abilities.demo_choice:acc"] == 0
    assert told["abilities"]["tasks"]["demo_cloze"]["documents"] == 6
    verified = lmedit("verify", "out", *flags[4:])
    assert "to the bit\ngate  abilities.demo_cloze " in verified.stdout
    strict = ("--gate", f"abilities.demo_cloze{other}{middle:g}", "--include-path", tasks)
    assert lmedit("verify", "out", *strict).exit_code == 1
    recipe = Path("recipe.toml")
    head = f'base = "{model}"\ngate = "{gate}"\ninclude_path = "{tasks}"\n'
    recipe.write_text(head + '[[edit]]\npatch = "light.safetensors"\n', encoding="utf-8")
    assert lmedit("verify", "out", "--recipe", recipe).exit_code == 0
    budget = ("--budget", "abilities.demo_cloze<-1e99", "--include-path", tasks)
    ft = ("-o", "layer", 1, "-o", "steps", 1)
    tried = lmedit("edit", "ft", "-m", model, *FACT, *ft, *budget, "-O", "no.safetensors")
    assert tried.exit_code == 1
    assert "abilities.demo_cloze" in tried.stdout
    assert not Path("no.safetensors").exists()


def test_wrong_input_is_one_line(
    lmedit: Run, model: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own").mkdir()
    hub = "task: far\ndataset_path: nobody/nothing\noutput_type: loglikelihood\n"
    Path("own/far.yaml").write_text(hub + "test_split: test\n", encoding="utf-8")
    lost = "task: lost\ndataset_path: json\ndataset_kwargs:\n  data_files: no.jsonl\n"
    Path("own/lost.yaml").write_text(lost + "test_split: train\n", encoding="utf-8")
    Path("empty").mkdir()
    own = ("--include-path", "own")
    for flags, code, told in (
        (("--tasks", "far", *own), 1, "task 'far': its data set is not on this machine; add --dow"),
        (("--tasks", "lost", *own), 1, "task 'lost' cannot be loaded"),
        (("--tasks", "far,far", *own), 1, "--tasks names far twice"),
        (("--tasks", " ,", *own), 1, "--tasks names no task"),
        (("--tasks", "far", "--include-path", "empty"), 1, "no folder with YAML files of tasks"),
    ):
        done = lmedit("abilities", model, *flags)
        assert done.exit_code == code
        assert told in done.stderr.splitlines()[-1]
    done = lmedit("abilities", model, "b", "--tasks", "far")
    assert (done.exit_code, "'b' is no patch file" in done.stderr) == (2, True)
    done = lmedit("compare", "ft", "-m", model, *own)
    assert (done.exit_code, "--include-path is used only with --abilities" in done.stderr) == (
        2,
        True,
    )
    monkeypatch.setattr("lmedit.metrics.ability_tasks.find_spec", lambda name: None)
    done = lmedit("abilities", model, "--tasks", "demo_choice", "--include-path", tasks)
    assert done.stderr.splitlines()[-1].endswith("run pip install 'lmedit[abilities]'")


def test_a_harness_that_fails_is_one_line(lm: Lm, tasks: Path) -> None:
    abilities = Abilities(lm, Wanted(("demo_cloze",), tasks, limit=1))
    before = torch.random.get_rng_state()
    abilities.tasks["demo_cloze"].process_results = lambda *_: 1 / 0
    with pytest.raises(RequestError, match="the harness fails: division by zero"):
        abilities.measure()
    assert torch.equal(before, torch.random.get_rng_state())


def test_intervals_over_seeds_are_those_of_all_edits(lm: Lm, abilities: Abilities) -> None:
    """Two seeds of one case each, against one comparison of two cases."""
    from lmedit.compare.comparison import Compared, Outcome
    from lmedit.compare.rows import summary_row
    from lmedit.compare.seeds import pool

    def shift(by: float) -> dict[str, Any]:
        changed = {name: {m: list(v) for m, v in of.items()} for name, of in abilities.base.items()}
        changed["demo_cloze"]["perplexity"] = [
            value - by * (1 + number % 3)
            for number, value in enumerate(abilities.base["demo_cloze"]["perplexity"])
        ]
        return changed

    def compared(seed: int, values: dict[str, Any]) -> Compared:
        some = [Outcome("ft", "0", {"ES": 1.0}, abilities=values, key="k")]
        of_row = ability_differences(abilities, [values], seed)
        row = summary_row("ft", some, None) | {"abilities": of_row}
        return Compared({"seed": seed, "rows": [row]}, {"ft": some}, abilities)

    one, other = shift(0.1), shift(0.3)
    found = pool([compared(0, one), compared(1, other)], (0, 1)).results["rows"][0]["abilities"]
    assert found == ability_differences(abilities, [one, other], 0)
    cloze = found["demo_cloze"]["perplexity"]
    assert (cloze["edits"], cloze["low"] < cloze["difference"] < cloze["high"]) == (2, True)
