"""A comparison of small methods on a tiny model: every row, every failure, every check."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Applied, Case, Dense, Editor, Lm, Location, LowRank, Options, Request, Update
from lmedit.cases import BrokenCase, CaseSet, load_cases
from lmedit.compare.case_scores import score_cases
from lmedit.compare.comparison import compare
from lmedit.compare.store import RunStore, Stored
from lmedit.compare.table import failures, table
from lmedit.defaults import edit_apply
from lmedit.errors import BrokenPluginError, ModelChangedError, RequestError
from lmedit.metrics.counterfact import harmonic_mean
from lmedit.registry import LoadedMethod
from lmedit.tiny import tiny_family
from lmedit.types import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Plugin = Callable[..., LoadedMethod]
Result = dict[str, Any]

SUBJECTS = ("The tower", "A small boat", "Nobody", "The river", "The old city")


class Size(Options):
    size: float = 3.0


def case(number: int, **changes: Any) -> Case:
    subject = SUBJECTS[number % len(SUBJECTS)]
    request = Request(
        prompt="{} is in the", subject=subject, target_new="sea", target_true="old city"
    )
    probes = {
        "paraphrases": (f"In the morning {subject} went", f"{subject} stands by"),
        "neighbours": ("The sea is in the", "The night is in the", "Home is in the"),
    }
    return Case(id=str(number), request=request, **(probes | changes))


@pytest.fixture
def cases() -> CaseSet:
    return CaseSet("toy", "d" * 64, tuple(case(i) for i in range(4)))


def push(lm: Lm, location: Location, options: Size) -> Update:
    """Push the last block's output along the new answer's embedding."""
    (site,) = location.sites
    direction = lm.model.lm_head.weight[lm.encode(" sea")[0]]
    return Update({site: LowRank(options.size * direction[:, None], lm.weight(site)[:1].abs())})


def locate(lm: Lm) -> Location:
    return Location((lm.mlp_out(lm.n_layers - 1),))


@pytest.fixture
def make(lm: Lm, plugin: Plugin) -> Callable[..., Editor]:
    """An editor on `lm` under a name of its own, with some hooks replaced."""
    from lmedit import Method

    def build(name: str, size: float = 3.0, **hooks: Any) -> Editor:
        own = {
            "edit_describe": lambda: Method(name, "no paper", Size),
            "edit_locate": locate,
            "edit_compute": push,
        }
        return Editor(plugin(name, **(own | hooks)), lm, Size(size=size), Prepared())

    return build


Make = Callable[..., Editor]


def run(lm: Lm, cases: CaseSet, folder: Path, *editors: Editor) -> Result:
    """A run of its own: nothing is taken from an earlier one in *folder*."""
    return compare(lm, cases, editors, folder / f"run-{len(list(folder.iterdir()))}", 0).finish()


def row_of(result: Result, method: str) -> Result:
    return next(row for row in result["rows"] if row["method"] == method)


def stored_in(folder: Path, number: int = 0) -> list[Stored]:
    """What the run of that number kept, by case."""
    with RunStore(folder / f"run-{number}") as store:
        return sorted(store.all(), key=lambda stored: stored.case_id)


def refuse() -> Update:
    raise RequestError("this subject is too long")


def refuse_the_tower(lm: Lm, request: Request, location: Location, options: Size) -> Update:
    if request.subject == "The tower":
        raise ZeroDivisionError("no tower")
    return push(lm, location, options)


REASON = "method 'm' of lmedit-toy: edit_compute raised ZeroDivisionError: no tower"


# ---- rows


def test_the_unedited_model_comes_first_then_the_methods_in_order(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, make("zeta"), make("alpha"))
    assert [row["method"] for row in result["rows"]] == ["base", "zeta", "alpha"]


def test_the_object_has_the_keys_that_others_rely_on(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, make("push"))
    assert result["model"] == {"name": "tiny", "digest": lm.weights_digest()}
    assert result["cases"] == {"name": "toy", "digest": "d" * 64, "n": 4}
    assert result["seed"] == 0
    promised = {
        "method",
        "n",
        "n_failed",
        "ES",
        "ES_ci",
        "EM",
        "PS",
        "PS_ci",
        "PM",
        "NS",
        "NS_ci",
        "NM",
        "S",
        "GE",
        "RS",
        "seconds_per_edit",
        "prepare_seconds",
    }
    for row in result["rows"]:
        assert promised <= set(row)
        assert row["GE"] is None
        assert row["RS"] is None
    base, edited = result["rows"]
    assert (base["n"], base["n_failed"]) == (edited["n"], edited["n_failed"]) == (4, 0)
    assert base["seconds_per_edit"] is base["prepare_seconds"] is None
    assert edited["seconds_per_edit"] > 0
    assert edited["prepare_seconds"] is None
    assert (edited["version"], edited["options"]) == ("1.2", {"seed": 0, "size": 3.0})


def test_the_object_is_strict_json(lm: Lm, cases: CaseSet, make: Make, tmp_path: Path) -> None:
    result = run(lm, cases, tmp_path, make("push"))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_scores_are_percentages_of_the_cases_edited_one_at_a_time(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    editor = make("push")
    row = row_of(run(lm, cases, tmp_path, editor), "push")
    scores = []
    for one in cases.good:
        with editor.applied(editor.compute(one.request)):
            scores.append(score_cases(lm, [one])[0])
    for name in ("ES", "EM", "PS", "PM", "NS", "NM"):
        values = [score[name] for score in scores]
        average = sum(values) / 4
        assert row[name] == pytest.approx(100 * average)
        spread = math.sqrt(sum((value - average) ** 2 for value in values) / 4)
        assert row[f"{name}_ci"] == pytest.approx(100 * 1.96 * spread / 2)
    assert row["S"] == harmonic_mean([row["ES"], row["PS"], row["NS"]])


def test_a_push_towards_the_answer_is_seen_in_the_scores(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, make("push", size=30.0), make("pull", size=-30.0))
    base, up, down = (row_of(result, name)["EM"] for name in ("base", "push", "pull"))
    assert down < base < up


def test_the_base_row_is_the_unedited_model(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, make("push"))
    scores = [score_cases(lm, [one])[0]["EM"] for one in cases.good]
    assert result["rows"][0]["EM"] == pytest.approx(100 * sum(scores) / 4)


def test_no_methods_give_the_base_row_alone(lm: Lm, cases: CaseSet, tmp_path: Path) -> None:
    assert [row["method"] for row in run(lm, cases, tmp_path)["rows"]] == ["base"]


def test_the_model_is_given_back(lm: Lm, cases: CaseSet, make: Make, tmp_path: Path) -> None:
    digest = lm.weights_digest()
    run(lm, cases, tmp_path, make("push"), make("bad", edit_compute=refuse_the_tower))
    assert lm.weights_digest() == digest


def test_a_method_after_another_scores_as_alone(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    alone = row_of(run(lm, cases, tmp_path, make("push")), "push")
    after = row_of(run(lm, cases, tmp_path, make("other", size=9.0), make("push")), "push")
    timed = {"seconds_per_edit", "seconds_amortised", "peak_mebibytes"}
    assert {k: v for k, v in alone.items() if k not in timed} == {
        k: v for k, v in after.items() if k not in timed
    }


def test_what_no_case_has_is_null_and_never_a_number(lm: Lm, make: Make, tmp_path: Path) -> None:
    bare = CaseSet("bare", "d", (case(0, paraphrases=(), neighbours=()),))
    row = row_of(run(lm, bare, tmp_path, make("push")), "push")
    assert row["ES"] is not None
    for name in ("PS", "PM", "NS", "NM", "S", "relation_specificity", "PS_ci", "NS_ci"):
        assert row[name] is None


def test_a_seed_is_kept(lm: Lm, cases: CaseSet, tmp_path: Path) -> None:
    assert compare(lm, cases, [], tmp_path, 17).finish()["seed"] == 17


def test_the_time_of_an_edit_is_that_of_computing_it(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def compute(lm: Lm, location: Location, options: Size) -> Update:
        now[0] += 1
        return push(lm, location, options)

    def score(*arguments: Any) -> Any:
        now[0] += 100
        return score_cases(*arguments)

    monkeypatch.setattr("lmedit.compare.case_scores.score_cases", score)
    row = row_of(run(lm, cases, tmp_path, make("m", edit_compute=compute)), "m")
    assert row["seconds_per_edit"] == 1


# ---- failures


def test_a_failed_edit_counts_with_the_unedited_models_scores(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, make("no", edit_compute=refuse))
    base, row = result["rows"]
    assert (row["n"], row["n_failed"]) == (4, 4)
    assert row["failures"] == {"this subject is too long": 4}
    for name in ("ES", "EM", "PS", "PM", "NS", "NM", "S"):
        assert row[name] == base[name]
    assert row["seconds_per_edit"] is None


def test_a_strangers_error_fails_its_case_alone(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    row = row_of(run(lm, cases, tmp_path, make("m", edit_compute=refuse_the_tower)), "m")
    assert (row["n"], row["n_failed"]) == (4, 1)
    assert row["failures"] == {REASON: 1}
    kept = {s.case_id: json.loads(s.payload) for s in stored_in(tmp_path) if s.method == "m"}
    assert kept.pop("0")["failure"] == REASON
    assert all("scores" in payload and "failure" not in payload for payload in kept.values())


def test_a_failed_edit_has_the_base_scores_and_the_others_their_own(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    editor = make("m", edit_compute=refuse_the_tower)
    row = row_of(run(lm, cases, tmp_path, editor), "m")
    scores = [score_cases(lm, [cases.good[0]])[0]["EM"]]
    for one in cases.good[1:]:
        with editor.applied(editor.compute(one.request)):
            scores.append(score_cases(lm, [one])[0]["EM"])
    assert row["EM"] == pytest.approx(100 * sum(scores) / 4)


def test_a_method_that_breaks_a_law_fails_with_the_reason(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    broken = make("m", edit_compute=lambda: None)
    row = row_of(run(lm, cases, tmp_path, broken, make("push")), "m")
    (reason,) = row["failures"]
    assert "edit_compute must return Update" in reason
    assert row["n_failed"] == 4


def test_ctrl_c_ends_the_run_and_gives_the_model_back(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, calls = lm.weights_digest(), []

    def interrupted(lm: Lm, scored: list[Case], *rest: Any) -> Any:
        calls.extend(scored)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return score_cases(lm, scored, *rest)

    monkeypatch.setattr("lmedit.compare.worker.AT_ONCE", 2)
    monkeypatch.setattr("lmedit.compare.case_scores.score_cases", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(lm, cases, tmp_path, make("push"))
    assert lm.weights_digest() == digest
    assert Counter(s.method for s in stored_in(tmp_path)) == {"base": 4, "push": 2}


@pytest.mark.parametrize("hook", ["edit_locate", "edit_compute"])
def test_changing_the_model_outside_apply_is_an_error(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, hook: str
) -> None:
    def spoil(lm: Lm) -> None:
        with torch.no_grad():
            lm.model.get_parameter("transformer.ln_f.bias")[0] += 1

    def locate_and_spoil(lm: Lm) -> Location:
        spoil(lm)
        return locate(lm)

    def compute_and_spoil(lm: Lm, location: Location, options: Size) -> Update:
        spoil(lm)
        return push(lm, location, options)

    hooks = {"edit_locate": locate_and_spoil, "edit_compute": compute_and_spoil}
    with pytest.raises(BrokenPluginError, match=r"'spoiler' .*changed the model outside apply"):
        run(lm, cases, tmp_path, make("push"), make("spoiler", **{hook: hooks[hook]}))


def test_what_was_scored_on_a_changed_model_is_not_kept_when_the_run_is_interrupted(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    calls: list[str] = []

    def spoil(lm: Lm, request: Request, location: Location, options: Size) -> Update:
        calls.append(request.subject)
        if len(calls) == 4:
            raise KeyboardInterrupt
        with torch.no_grad():
            lm.model.get_parameter("transformer.ln_f.bias")[0] += 1
        return push(lm, location, options)

    with pytest.raises((KeyboardInterrupt, BrokenPluginError)):
        run(lm, cases, tmp_path, make("spoiler", edit_compute=spoil))
    assert [s.case_id for s in stored_in(tmp_path) if s.method == "spoiler"] == []


def test_a_revert_that_does_not_revert_is_an_error(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(BrokenPluginError, match="'forgetful'"):
        run(lm, cases, tmp_path, make("forgetful", edit_revert=lambda: True))


def test_an_apply_that_fails_half_way_is_an_error_of_its_method(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    def half(lm: Lm, update: Update) -> Applied:
        lm.add(*((site, delta.dense()) for site, delta in update.deltas.items()).__next__())
        raise RuntimeError("half-way")

    message = r"'half' .*edit_apply failed half-way .*RuntimeError: half-way"
    with pytest.raises(ModelChangedError, match=message):
        run(lm, cases, tmp_path, make("half", edit_apply=half))


def test_an_edit_that_breaks_the_model_puts_no_nan_into_the_results(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    def explode(lm: Lm, location: Location) -> Update:
        (site,) = location.sites
        return Update({site: Dense(torch.full(lm.weight(site).shape, 1e300, dtype=torch.double))})

    result = run(lm, cases, tmp_path, make("bang", edit_compute=explode))
    json.dumps(result, allow_nan=False)


# ---- broken records


def test_broken_records_are_counted_for_every_method(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    broken = BrokenCase("9", 40, "field 'prompt' is missing")
    mixed = CaseSet("mixed", "d", (cases.items[0], broken, *cases.items[1:]))
    result = run(lm, mixed, tmp_path, make("push"))
    whole = run(lm, cases, tmp_path, make("push"))
    assert result["cases"]["n"] == 5
    for row, alone in zip(result["rows"], whole["rows"], strict=True):
        assert (row["n"], row["n_failed"]) == (5, 1)
        assert row["failures"] == {"line 40, case 9: field 'prompt' is missing": 1}
        assert (row["ES"], row["EM"], row["S"]) == (alone["ES"], alone["EM"], alone["S"])


def test_only_broken_records_give_no_scores(lm: Lm, make: Make, tmp_path: Path) -> None:
    broken = CaseSet("broken", "d", (BrokenCase("?", 1, "a list"),))
    for row in run(lm, broken, tmp_path, make("push"))["rows"]:
        assert (row["n"], row["n_failed"], row["ES"], row["S"]) == (1, 1, None, None)


def test_a_broken_record_of_the_same_id_leaves_the_others_scores(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    mixed = CaseSet("mixed", "d", (*cases.items, BrokenCase("0", 40, "twice")))
    base, row = run(lm, mixed, tmp_path, make("no", edit_compute=refuse))["rows"]
    assert (row["ES"], row["EM"], row["PS"]) == (base["ES"], base["EM"], base["PS"])


# ---- what is kept


def test_every_method_and_case_is_kept(lm: Lm, cases: CaseSet, make: Make, tmp_path: Path) -> None:
    run(lm, cases, tmp_path, make("push"), make("no", edit_compute=refuse))
    kept = stored_in(tmp_path)
    assert Counter(s.method for s in kept) == {"base": 4, "push": 4, "no": 4}
    assert {s.case_id for s in kept} == {"0", "1", "2", "3"}
    for stored in kept:
        payload = json.loads(stored.payload)
        if stored.method == "no":
            assert payload == {"failure": "this subject is too long"}
        else:
            assert set(payload["scores"]) >= {"ES", "EM", "PS", "PM", "NS", "NM"}


def test_results_are_kept_while_the_run_goes_on(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmedit.compare.worker.AT_ONCE", 2)
    seen: list[int] = []

    def compute(lm: Lm, location: Location, options: Size) -> Update:
        seen.append(len(stored_in(tmp_path)))
        return push(lm, location, options)

    run(lm, cases, tmp_path, make("push", edit_compute=compute))
    assert seen == [4, 4, 6, 6]


def test_cases_from_a_file_are_compared(lm: Lm, make: Make, tmp_path: Path) -> None:
    def record(number: int) -> dict[str, Any]:
        one = case(number)
        return {
            "case_id": number,
            "requested_rewrite": {
                "prompt": one.request.prompt,
                "subject": one.request.subject,
                "target_new": {"str": "sea"},
                "target_true": {"str": "old city"},
            },
            "paraphrase_prompts": list(one.paraphrases),
            "neighborhood_prompts": list(one.neighbours),
            "attribute_prompts": [],
            "generation_prompts": [],
        }

    file = tmp_path / "cases.json"
    file.write_text(json.dumps([record(0), {"case_id": 1}, record(2)], indent=1))
    result = run(lm, load_cases(str(file)), tmp_path, make("push"))
    assert [(row["n"], row["n_failed"]) for row in result["rows"]] == [(3, 1), (3, 1)]


# ---- the table


def row(method: str, **values: Any) -> Result:
    empty = dict.fromkeys(
        (
            "S",
            "ES",
            "PS",
            "NS",
            "EM",
            "PM",
            "NM",
            "GE",
            "RS",
            "relation_specificity",
            "seconds_per_edit",
            "prepare_seconds",
        )
    )
    return {"method": method, "n": 10, "n_failed": 0, "failures": {}, **empty, **values}


def test_the_table_shows_what_was_measured_aligned() -> None:
    text = table(
        [
            row("base", S=30.46, ES=22.2, ES_ci=0.94, EM=-4.8),
            row(
                "longer-name",
                S=None,
                ES=100.0,
                ES_ci=0.0,
                EM=97.96,
                n_failed=2,
                seconds_per_edit=1.5,
            ),
            row("hop", **{"portability/two-hop": 50.0, "portability/two-hop_ci": 9.8}),
        ]
    )
    assert text.splitlines() == [
        "method        n  failed     S           ES    EM     two-hop  s/edit",
        "base         10       0  30.5   22.2 (0.9)  -4.8           -       -",
        "longer-name  10       2     -  100.0 (0.0)  98.0           -    1.50",
        "hop          10       0     -            -     -  50.0 (9.8)       -",
    ]


def test_the_table_of_a_real_run_can_be_shown(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, make("push"), make("no", edit_compute=refuse))
    head, *body = table(result["rows"]).splitlines()
    assert head.split() == [
        "method",
        "n",
        "failed",
        "S",
        "ES",
        "PS",
        "NS",
        "EM",
        "PM",
        "NM",
        "s/edit",
    ]
    assert [line.split()[:3] for line in body] == [
        ["base", "4", "0"],
        ["push", "4", "0"],
        ["no", "4", "4"],
    ]
    assert failures(result["rows"]) == ["no: 4 failed: this subject is too long"]


def test_nothing_measured_is_still_a_table() -> None:
    assert table([row("base")]).splitlines() == ["method   n  failed", "base    10       0"]


# ---- updates worked out together


def many(calls: list[list[str]]) -> Callable[..., list[Update]]:
    """A hook that works out several requests, and notes which."""

    def push_all(
        lm: Lm, requests: list[Request], locations: list[Location], options: Size
    ) -> list[Update]:
        calls.append([request.subject for request in requests])
        return [push(lm, location, options) for location in locations]

    return push_all


def twenty() -> CaseSet:
    cases = (case(i).model_copy(update={"id": f"{i:02}"}) for i in range(20))
    return CaseSet("toy", "d" * 64, tuple(cases))


def scores_of(folder: Path, number: int) -> list[Any]:
    return [(s.case_id, json.loads(s.payload)) for s in stored_in(folder, number)]


def test_a_method_that_can_is_given_eight_requests_at_once(
    lm: Lm, make: Make, tmp_path: Path
) -> None:
    calls: list[list[str]] = []
    together = run(lm, twenty(), tmp_path, make("push", edit_compute_many=many(calls)))
    alone = run(lm, twenty(), tmp_path, make("push"))
    assert [len(subjects) for subjects in calls] == [8, 8, 4]
    assert scores_of(tmp_path, 0) == scores_of(tmp_path, 1)
    one, other = row_of(together, "push"), row_of(alone, "push")
    assert one["seconds_per_edit"] > 0
    assert {k: v for k, v in one.items() if "second" not in k and "peak" not in k} == {
        k: v for k, v in other.items() if "second" not in k and "peak" not in k
    }


def test_where_one_of_a_group_fails_each_is_tried_alone(lm: Lm, make: Make, tmp_path: Path) -> None:
    def refuse_all(requests: list[Request]) -> list[Update]:
        raise RequestError("one of them is too long")

    editor = make("push", edit_compute=refuse_the_tower, edit_compute_many=refuse_all)
    row = row_of(run(lm, twenty(), tmp_path, editor), "push")
    assert row["n_failed"] == 4
    assert list(row["failures"]) == [REASON.replace("'m'", "'push'")]


def test_an_interrupted_group_is_worked_out_as_a_whole_again(
    lm: Lm, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an update does not depend on what had been finished before."""
    keep = RunStore.add

    def stop_at_the_fifth(store: RunStore, results: Sequence[Stored]) -> None:
        keep(store, results[:5] if results[0].method == "push" else results)
        if results[0].method == "push":
            raise KeyboardInterrupt

    calls: list[list[str]] = []
    editor = make("push", edit_compute_many=many(calls))
    monkeypatch.setattr(RunStore, "add", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        compare(lm, twenty(), [editor], tmp_path / "run", 0)
    monkeypatch.setattr(RunStore, "add", keep)
    compare(lm, twenty(), [editor], tmp_path / "run", 0)
    assert [len(subjects) for subjects in calls] == [8, 8, 8, 4]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("wrong", [None, [], "updates", [Update({})] * 3])
def test_a_batch_of_another_size_is_refused(lm: Lm, make: Make, wrong: Any) -> None:
    editor = make("push", edit_compute_many=lambda requests: wrong or [])
    with pytest.raises(BrokenPluginError, match="must return 2 updates"):
        editor.compute_many([case(0).request, case(1).request])


# ---- beside the weights, or in them


def test_rows_are_the_same_beside_the_weights_and_in_them(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = row_of(run(lm, cases, tmp_path, make("push")), "push")
    monkeypatch.setattr("lmedit.compare.worker.UnmergedEdits.fits", lambda *_: False)
    within = row_of(run(lm, cases, tmp_path, make("push")), "push")
    for name in ("ES", "EM", "PS", "PM", "NS", "NM", "S", "relative_norm", "n", "n_failed"):
        assert beside[name] == pytest.approx(within[name])


def test_a_method_that_applies_by_itself_is_scored_in_the_weights(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    seen = []

    def apply(lm: Lm, update: Update) -> Any:
        seen.append(lm.weights_digest())
        return edit_apply(lm, update)

    row = row_of(run(lm, cases, tmp_path, make("own", edit_apply=apply)), "own")
    assert row["n_failed"] == 0
    assert seen == [lm.digest] * 4


def test_half_precision_is_scored_as_rounding_leaves_it(
    cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("an edit of half precision must not stay beside the weights")

    monkeypatch.setattr("lmedit.replay.unmerged.UnmergedEdits.__init__", refused)
    half = tiny_family("gpt2", dtype=torch.bfloat16)
    row = row_of(run(half, cases, tmp_path, replace(make("push"), lm=half)), "push")
    assert row["n_failed"] == 0
    assert row["survival"] is not None
