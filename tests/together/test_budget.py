"""`lmedit edit best` and `--budget`: the first edit within the budget, beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_world import FACT, record

import lmedit as lmedit_package
from lmedit import Request, load_lm, load_patch
from lmedit.actions.best import Budget, Search, beside
from lmedit.actions.choices import choices_of
from lmedit.actions.gauge import Gauge
from lmedit.actions.judged import held_out_text, judge
from lmedit.compare.case_scores import score_cases
from lmedit.compare.limits import parse_limits
from lmedit.compare.measures import HELDOUT_LINES
from lmedit.errors import LimitError, OptionError, UnknownNameError
from lmedit.plan import Plan, Setup, set_up
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from lmedit.models import Lm

    Run = Callable[..., Result]

EIFFEL = Request(prompt="{} is in the city of", subject="The Eiffel Tower", target_new="Rome")
TOWER = ("--prompt", EIFFEL.prompt, "--subject", EIFFEL.subject, "--target", EIFFEL.target_new)
NEW = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")


@pytest.fixture(scope="module")
def demo() -> Lm:
    """The embedded model; its editors of MEND come with it."""
    return load_lm("demo")


def versions(lm: Lm) -> list[int]:
    """How often each parameter was written to."""
    return [parameter._version for parameter in lm.model.parameters()]


@pytest.mark.slow
def test_the_first_method_within_the_budget_is_written(lmedit: Run) -> None:
    best = ("edit", "best", *TOWER, "-o", "methods", "mend,ft,kn", "-O", "p.safetensors")
    done = lmedit(*best, "--budget", "KL<0.02, NS>0.7")
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if " of 3 " in line}
    assert list(rows) == ["mend", "ft"]  # kn is dearer, and is not tried
    assert "not taken: NS 0." in rows["mend"]
    assert rows["ft"].endswith("  taken")
    assert "verdict: took" in done.stdout
    _, facts = load_patch(Path("p.safetensors"))
    assert facts["method"] == "ft"
    assert facts["options"]["layer"] == 2
    assert facts["budget"]["tried"] == ["mend", "ft"]
    assert facts["budget"]["values"]["NS"] > 0.7
    assert "budget: KL 0.0" in lmedit("show", "p.safetensors").stdout
    assert lmedit("apply", "p.safetensors", "-O", "out").exit_code == 0
    assert "with 1 edit(s), to the bit" in lmedit("verify", "out").stdout
    assert "again, to the bit" in lmedit("revert", "out", "p.safetensors").output


@pytest.mark.slow
def test_without_a_method_within_the_budget_nothing_is_written(lmedit: Run) -> None:
    best = ("edit", "best", *TOWER, "-o", "methods", "mend,ke", "--budget", "KL<0.02, NS>0.99")
    done = lmedit(*best)
    assert done.exit_code == 1
    assert done.stdout.count("not taken: NS 0.") == 2
    assert "none of 2 methods stays within the budget (nearest, " in done.stderr
    assert "no patch is written" in done.stderr
    told = json.loads(lmedit(*best, "--json").stdout)
    assert told["taken"] is told["edit"] is told["patch"] is None
    assert [each["method"] for each in told["tried"]] == ["mend", "ke"]
    assert [each["term"] for each in told["budget"]] == ["KL", "NS", "ppl"]
    assert list(Path().iterdir()) == []


def test_a_budget_of_one_method_is_a_limit_of_its_edit(lmedit: Run) -> None:
    ours = ("edit", "mend", *TOWER, "-O", "p.safetensors", "--budget")
    done = lmedit(*ours, "KL<1e-9")
    assert done.exit_code == 1
    assert "the method does not stay within the budget (nearest, mend: KL " in done.stderr
    assert not Path("p.safetensors").exists()
    assert lmedit(*ours, "KL<0.5", "--json").exit_code == 0
    assert Path("p.safetensors").is_file()


def test_the_search_writes_no_weight_and_gives_the_values_of_the_edited_model(demo: Lm) -> None:
    before, digest = versions(demo), demo.weights_digest()
    limits = parse_limits("KL<0.5, NS>0, GE>1, NKL<9, contains>0", "x")
    setup = set_up_on(demo, "mend")
    search = Search(demo, EIFFEL, Budget(limits))
    choices, _ = choices_of(setup)
    (trial,) = search.run(choices)
    assert trial.values is not None
    assert versions(demo) == before
    assert trial.editor is not None
    assert trial.made is not None
    with beside(trial.editor, trial.made.update) as edits:
        assert edits is not None
        after, verdict = search.looking.look(edits)
    assert versions(demo) == before
    assert verdict == "took"
    with trial.editor.applied(trial.made.update):
        written = search.gauge.measure()
        plain, same = search.looking.look()
    measured = {name: value for name, value in written.items() if value is not None}
    assert {"ES", "PS", "NS", "KL", "ppl", "GE", "neighbour_KL", "contains"} <= measured.keys()
    for name, value in measured.items():
        assert trial.values[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    assert same == verdict
    assert after["writes"] == plain["writes"]
    assert after["target_new"] == pytest.approx(plain["target_new"], rel=1e-4)
    assert demo.weights_digest() == digest


def test_limits_read_forty_lines_of_a_longer_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmedit.actions.judged.HELDOUT_LINES", HELDOUT_LINES)
    Path("long.txt").write_text("The boat is by the sea.\n" * 50, encoding="utf-8")
    held = held_out_text(tiny_lm(), Path("long.txt"))[1]
    assert len(held.rows) == HELDOUT_LINES == 40


def set_up_on(lm: Lm, *methods: str) -> Setup:
    plan = Plan(methods)
    return Setup(plan, tuple(plan.load_methods()), lm)


def test_a_known_fact_has_the_scores_of_a_comparison(demo: Lm) -> None:
    fact = judge(demo, EIFFEL)
    assert fact.true_known
    assert fact.sources()["neighbours"] == {"count": 10, "from": "case"}
    limits = parse_limits("NS>0.5", "x")
    values = Gauge(demo, [fact], limits, held_out_text(demo, None)[1]).measure()
    (scores,) = score_cases(demo, [fact.case])
    assert {name: values[name] for name in ("ES", "PS", "NS", "NM")} == {
        name: scores[name] for name in ("ES", "PS", "NS", "NM")
    }
    assert values["KL"] == pytest.approx(0, abs=1e-9)
    assert values["ppl"] == pytest.approx(1)


def test_without_a_case_the_present_answer_is_the_models_own() -> None:
    lm = tiny_lm(3)
    fact = judge(lm, NEW)
    assert not fact.true_known
    assert fact.paraphrases_from == "model"
    assert all(text.endswith(NEW.text) for text in fact.case.paraphrases)
    Path("near.txt").write_text("The boat is by\nThe night is\n", encoding="utf-8")
    fact = judge(lm, NEW, "near.txt")
    assert fact.sources()["neighbours"] == {"count": 2, "from": "file"}
    text, held = held_out_text(lm, None)
    assert "plain sentences" in text
    values = Gauge(lm, [fact], parse_limits("NS>0.5, NS_plus>0", "x"), held).measure()
    assert values["NS"] == 1.0  # the top token beats any other answer
    assert values["ES"] == 0.0
    assert values["NS_plus"] is not None


def test_cases_of_the_user_give_the_paraphrases_and_the_neighbours() -> None:
    Path("mine.json").write_text(json.dumps([record(0)]), encoding="utf-8")
    fact = judge(tiny_lm(3), NEW, "mine.json")
    assert fact.true_known
    assert fact.case.request.target_true == "the river"
    assert fact.prompts[1:] == record(0)["paraphrase_prompts"]
    assert list(fact.case.neighbours) == record(0)["neighborhood_prompts"]
    other = NEW.model_copy(update={"target_true": "the hill"})
    assert not judge(tiny_lm(3), other, "mine.json").true_known


def test_methods_come_from_cheap_to_dear_and_tuned_ones_first(demo: Lm) -> None:
    choices, left_out = choices_of(set_up_on(demo))
    names = [each.name for each in choices]
    assert [each.untuned for each in choices] == sorted(each.untuned for each in choices)
    tuned = [each.cost for each in choices if not each.untuned]
    assert tuned == sorted(tuned)
    assert names.index("mend") < names.index("ft") < names.index("rome") < names.index("memit")
    assert [line.split()[0] for line in left_out] == ["malmen"]
    named, _ = choices_of(set_up_on(demo, "rome", "ft"))
    assert [each.name for each in named] == ["rome", "ft"]


def test_an_error_of_one_method_is_a_failed_trial() -> None:
    lm = tiny_lm(0)
    fact = Request(prompt="The tower is in", target_new="Rome")
    search = Search(lm, fact, Budget())
    choices, _ = choices_of(set_up_on(lm, "rome", "ft"))
    tried = search.run(choices)
    assert [each.name for each in tried] == ["rome", "ft"]
    assert "subject" in (tried[0].why_not or "")
    assert tried[0].as_json()["values"] == {}
    told: dict[str, Any] = search.result(tried, [], None)
    assert told["patch"] is None
    assert told["refused"].startswith("none of 2 methods stays within the budget (nearest, ft: ")


def test_in_python(demo: Lm) -> None:
    best = lmedit_package.best_edit(demo, EIFFEL, "KL<0.1", methods=["mend"])
    assert best.editor.name == "mend"
    assert [each.why_not for each in best.tried] == [None]
    with pytest.raises(LimitError, match="does not stay within the budget"):
        lmedit_package.best_edit(demo, EIFFEL, "NS>0.99", methods=["mend"])
    with pytest.raises(OptionError, match="the nearest are KL"):
        lmedit_package.best_edit(demo, EIFFEL, "KLL<1")


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("best", "--budget", "KLX<1"), 1, "--budget: no term 'KLX'; the nearest are KL"),
        (
            ("best", "--budget", "KL<1", "--force"),
            2,
            "--force has no use beside a budget; remove it",
        ),
        (("best", "-o", "methods", ","), 2, "-o methods names no method"),
        (("best", "-o", "methods", "rom"), 1, "did you mean 'rome'"),
        (("ft", "--budget", "KL<1", "-o", "methods", "ft"), 2, "is for lmedit edit best"),
        (("ft", "--heldout", "a.txt"), 2, "--heldout is for --budget"),
        (("best", "--heldout", "none.txt"), 1, "--heldout none.txt: this file does not exist"),
        (("best", "--near", "none.txt"), 1, "none.txt"),
    ],
)
def test_wrong_use_is_one_line(
    lmedit: Run, model: Path, flags: tuple[str, ...], code: int, told: str
) -> None:
    done = lmedit("edit", flags[0], *FACT, "-m", model, *flags[1:])
    assert done.exit_code == code
    assert told in done.stderr
    assert len([line for line in done.stderr.splitlines() if "rror" in line]) == 1
    assert list(Path().iterdir()) == []


def test_a_name_of_the_command_is_no_method(lmedit: Run) -> None:
    done = lmedit("new", "best", "-O", "plugin")
    assert "the name 'best' belongs to the core" in done.stderr


def test_the_plan_of_best_is_checked_before_a_model_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match="layr"):
        set_up(Plan(("ft",), options=(("ft.layr", "1"),)))
