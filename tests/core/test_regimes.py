"""Edits that pile up: each size against a plain loop, resumed, shared, collapsed, given back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Case, Dense, Editor, Lm, Location, LowRank, Method, Options, Request, Update
from lmedit.cases import BrokenCase, CaseSet
from lmedit.compare import regimes
from lmedit.compare.candidates import Candidate
from lmedit.compare.case_scores import Scoring, score_cases
from lmedit.compare.one_edit import compute_update
from lmedit.compare.regimes import Regime, pile_up
from lmedit.compare.store import RunStore
from lmedit.compare.worker import Ended
from lmedit.errors import BrokenPluginError
from lmedit.metrics.health import HeldOut
from lmedit.metrics.weights import largest_singular_value
from lmedit.storage.steps import tell_spared
from lmedit.testing import TEXTS
from lmedit.types import Prepared, Site

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmedit.registry import LoadedMethod

    Make = Callable[..., Editor]

SUBJECTS = ("The tower", "A small boat", "Nobody", "The river", "The old city")


class Size(Options):
    size: float = 1.0


def case(number: int, name: str | None = None, prompt: str = "{} is in the") -> Case:
    request = Request(
        prompt=prompt, subject=SUBJECTS[number], target_new="sea", target_true="old city"
    )
    return Case(
        id=name or str(number),
        request=request,
        paraphrases=(f"{SUBJECTS[number]} stands by",),
        neighbours=("The sea is in the", "Home is in the"),
    )


@pytest.fixture
def cases() -> CaseSet:
    return CaseSet("toy", "d" * 64, tuple(case(i) for i in range(4)))


def push(lm: Lm, request: Request, location: Location, options: Size) -> Update:
    """A change that depends on the request and on the weights as they are now."""
    (site,) = location.sites
    direction = lm.model.lm_head.weight[lm.encode(" sea")[0]]
    row = lm.weight(site)[len(request.subject) % 5].clone()
    return Update({site: LowRank(options.size * direction[:, None], row[None])})


def locate(lm: Lm) -> Location:
    return Location((lm.mlp_out(lm.n_layers - 1),))


@pytest.fixture
def make(lm: Lm, plugin: Callable[..., LoadedMethod]) -> Make:
    def build(name: str, size: float = 1.0, **hooks: Any) -> Editor:
        own = {
            "edit_describe": lambda: Method(name, "none", Size),
            "edit_locate": locate,
            "edit_compute": push,
        }
        return Editor(plugin(name, **(own | hooks)), lm, Size(size=size), Prepared())

    return build


def scoring(lm: Lm) -> Scoring:
    return Scoring(frozenset({"health"}), HeldOut(lm, TEXTS))


def run(lm: Lm, cases: CaseSet, folder: Path, regime: Regime, *editors: Editor) -> dict[str, Any]:
    return pile_up(lm, cases, editors, folder, 0, scoring(lm), regime).finish()


def points(result: dict[str, Any], method: str) -> dict[int, dict[str, Any]]:
    return {p["size"]: p for p in result["curve"] if p["method"] == method}


@pytest.mark.parametrize("kind", ["batch", "sequential"])
def test_each_size_is_what_a_plain_loop_measures(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, kind: Any
) -> None:
    editor = make("push")
    site = lm.mlp_out(lm.n_layers - 1)
    base, text = lm.snapshot(site), HeldOut(lm, TEXTS)
    found = points(run(lm, cases, tmp_path, Regime(kind, (1, 3)), editor), "push")
    assert lm.weights_digest() == lm.digest

    on_base = [editor.compute(one.request) for one in cases.good]
    for number, one in enumerate(cases.good[:3], 1):
        update = on_base[number - 1] if kind == "batch" else editor.compute(one.request)
        for place, delta in update.deltas.items():
            lm.add(place, delta.dense())
        if number in found:
            scores = [score_cases(lm, [seen])[0] for seen in cases.good[:number]]
            for name in ("ES", "EM", "PS", "NS", "NM"):
                mean = sum(score[name] for score in scores) / number
                assert found[number][name] == pytest.approx(100 * mean), name
            assert found[number]["perplexity"] == pytest.approx(text.measure(lm)["perplexity"])
            change = torch.linalg.norm((lm.snapshot(site) - base).double())
            norm = float(change / torch.linalg.norm(base.double()))
            assert found[number]["relative_norm"] == pytest.approx(norm)
            growth = largest_singular_value(lm.snapshot(site)) / largest_singular_value(base)
            assert found[number]["spectral_growth"] == pytest.approx(growth)
    assert found[3]["relative_norm"] > found[1]["relative_norm"] > 0
    lm.restore(site, base)


def test_the_two_regimes_differ_only_behind_the_first_edit(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    sizes = (1, 4)
    batch = points(run(lm, cases, tmp_path / "b", Regime("batch", sizes), make("push")), "push")
    row = points(run(lm, cases, tmp_path / "s", Regime("sequential", sizes), make("push")), "push")
    assert batch[1]["EM"] == row[1]["EM"]
    assert batch[4]["EM"] != row[4]["EM"]


@pytest.mark.parametrize("kind", ["batch", "sequential"])
def test_a_run_that_was_killed_goes_on_and_ends_alike(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    regime = Regime(kind, (2, 4))
    whole = run(lm, cases, tmp_path / "whole", regime, make("push"))
    calls: list[str] = []

    def interrupted(lm: Lm, request: Request, location: Location, options: Size) -> Update:
        calls.append(request.subject)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return push(lm, request, location, options)

    for _ in range(2):
        try:
            again = run(lm, cases, tmp_path / "cut", regime, make("push", edit_compute=interrupted))
        except KeyboardInterrupt:
            assert lm.weights_digest() == lm.digest
    assert calls == [*SUBJECTS[:3], *SUBJECTS[2:4]]
    assert timeless(again) == timeless(whole)


def timeless(result: dict[str, Any]) -> Any:
    left = {"seconds_per_edit", "seconds_amortised", "peak_mebibytes"}
    return [
        {name: value for name, value in point.items() if name not in left}
        for point in (*result["curve"], *result["rows"])
    ]


def test_a_finished_run_computes_nothing_again(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    first = run(lm, cases, tmp_path, Regime("sequential", (4,)), make("push"))

    def refuse() -> Update:
        raise AssertionError("computed again")

    again = run(lm, cases, tmp_path, Regime("sequential", (4,)), make("push", edit_compute=refuse))
    assert json.dumps(again) == json.dumps(first)


def test_a_failed_edit_leaves_the_pile_as_it_is_and_is_counted(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    def sometimes(lm: Lm, request: Request, location: Location, options: Size) -> Update:
        if request.subject == "A small boat":
            raise ValueError("no boats")
        return push(lm, request, location, options)

    regime = Regime("sequential", (1, 2))
    found = points(run(lm, cases, tmp_path, regime, make("push", edit_compute=sometimes)), "push")
    assert (found[1]["n_failed"], found[2]["n_failed"]) == (0, 1)
    assert found[2]["relative_norm"] == found[1]["relative_norm"]


def test_a_broken_record_is_counted_in_the_row(lm: Lm, make: Make, tmp_path: Path) -> None:
    cases = CaseSet("toy", "d", (case(0), BrokenCase("9", 3, "no subject"), case(1)))
    result = run(lm, cases, tmp_path, Regime("batch", (2,)), make("push"))
    base, row = result["rows"]
    assert (row["n"], row["n_failed"], base["n_failed"]) == (3, 1, 1)
    assert row["failures"] == {"line 3, case 9: no subject": 1}


def test_the_alarm_rings_and_can_stop_the_method(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    last_norm = Site("transformer.ln_f.weight")

    def shout(lm: Lm) -> Update:
        """Every logit a thousand times as large."""
        return Update({last_norm: Dense(1e3 * torch.ones_like(lm.weight(last_norm)))})

    wild = make("wild", edit_locate=lambda: Location((last_norm,)), edit_compute=shout)
    editors = make("mild", size=0.0), wild
    regime = Regime("sequential", (1, 2, 4), collapse=2.0, stop=True)
    result = run(lm, cases, tmp_path, regime, *editors)
    assert [p["collapsed"] for p in points(result, "mild").values()] == [False] * 3
    assert list(points(result, "wild")) == [1]
    assert points(result, "wild")[1]["collapsed"]
    rows = {row["method"]: row for row in result["rows"]}
    assert (rows["wild"]["size"], rows["mild"]["size"]) == (1, 4)
    assert rows["wild"]["keys"] == []
    assert result["differences"] == []


def test_a_model_in_ruins_has_no_numbers_but_a_row(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    result = run(lm, cases, tmp_path, Regime("batch", (2,)), make("ruin", size=1e308))
    (point,) = points(result, "ruin").values()
    assert point["collapsed"]
    assert point["EM"] is None or math.isfinite(point["EM"])
    assert lm.weights_digest() == lm.digest


def test_a_method_that_changes_the_model_beside_apply_loses_its_results(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    def sly(lm: Lm, request: Request, location: Location, options: Size) -> Update:
        with torch.no_grad():
            lm.model.transformer.wpe.weight.add_(1e-3)
        return push(lm, request, location, options)

    with pytest.raises(BrokenPluginError, match="outside apply"):
        run(lm, cases, tmp_path, Regime("sequential", (2,)), make("sly", edit_compute=sly))
    with RunStore(tmp_path) as store:
        assert {stored.method for stored in store.all()} == {"base"}


def test_patches_in_the_folder_are_the_edits(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    from lmedit.edits.patches import load_patch

    editor = make("push")
    run(lm, cases, tmp_path, Regime("batch", (2,)), editor)
    patches = [load_patch(path) for path in (tmp_path / regimes.PATCHES).iterdir()]
    assert {facts["request"]["subject"] for _, facts in patches} == set(SUBJECTS[:2])
    for update, facts in patches:
        (delta,) = update.deltas.values()
        expected = editor.compute(Request(**facts["request"]))
        (wanted,) = expected.deltas.values()
        assert torch.equal(delta.dense(), wanted.dense())


def test_an_editor_of_each_case_is_made_before_the_first_edit(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    """A preparation must see the base model."""
    seen = []

    def editor_of(one: Case) -> Editor:
        seen.append(lm.weights_digest())
        return make("push")

    candidate = Candidate("drawn", editor_of)
    result = pile_up(
        lm, cases, [], tmp_path, 0, scoring(lm), Regime("sequential", (3,)), [candidate]
    ).finish()
    assert set(seen) == {lm.digest}
    assert [row["method"] for row in result["rows"]] == ["base", "drawn"]


def test_zero_columns_touch_nothing(lm: Lm, cases: CaseSet, make: Make, tmp_path: Path) -> None:
    def nothing(lm: Lm, location: Location) -> Update:
        (site,) = location.sites
        return Update({site: Dense(torch.zeros_like(lm.weight(site)))})

    result = run(lm, cases, tmp_path, Regime("batch", (4,)), make("nil", edit_compute=nothing))
    base, row = result["rows"]
    for name in ("ES", "EM", "PS", "NS", "perplexity"):
        assert row[name] == base[name]
    assert (row["relative_norm"], row["KL"]) == (0, 0)


# ---- one change for several facts


def join(lm: Lm, requests: Any, locations: Any, options: Size, carried: Any) -> Update:
    """Rank one for each request; what earlier parts carried makes it smaller."""
    (site,) = locations[0].sites
    earlier = 1.0 + sum(float(each["facts"].sum()) for each in carried)
    changes = [push(lm, request, locations[0], options).deltas[site] for request in requests]
    left = torch.cat([change.left for change in changes], 1) / earlier
    right = torch.cat([change.right for change in changes])
    return Update({site: LowRank(left, right)}, {}, {"facts": torch.ones(len(requests))})


def facts_of_patches(folder: Path) -> list[int]:
    from lmedit.edits.patches import load_patch

    found = [load_patch(path)[1] for path in (folder / regimes.PATCHES).iterdir()]
    return sorted(len(facts.get("requests", [0])) for facts in found)


def test_a_sum_computes_edits_together_if_the_method_can(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    """Once for all sizes; a stopped run computes the whole group again, so it ends alike."""
    calls: list[int] = []
    stop_at = [2]

    def many(lm: Lm, requests: Any, locations: Any, options: Size) -> list[Update]:
        calls.append(len(requests))
        if len(calls) == stop_at[0]:
            raise KeyboardInterrupt
        pairs = zip(requests, locations, strict=True)
        return [push(lm, request, location, options) for request, location in pairs]

    prompts = ("{} is in the", "{} came to the", "{} is by the")
    items = [case(i % 5, f"{i}", prompts[i // 5]) for i in range(10)]
    eleven = replace(cases, items=(items[1], *items))  # one fact twice
    editor, regime = make("push", edit_compute_many=many), Regime("batch", (3, 11))
    with pytest.raises(KeyboardInterrupt):
        run(lm, eleven, tmp_path / "cut", regime, editor)
    again = run(lm, eleven, tmp_path / "cut", regime, editor)
    assert calls == [8, 3, 3]
    stop_at[0] = 0
    assert timeless(run(lm, eleven, tmp_path / "whole", regime, editor)) == timeless(again)
    assert calls == [8, 3, 3, 8, 3]
    alone = run(lm, eleven, tmp_path / "alone", regime, make("push"))
    assert points(alone, "push")[11]["EM"] == points(again, "push")[11]["EM"]


def test_an_edit_that_fails_in_a_group_fails_alone(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    def many(lm: Lm, requests: Any) -> list[Update]:
        raise ValueError("one of them")

    def some(lm: Lm, request: Request, location: Location, options: Size) -> Update:
        if request.subject == SUBJECTS[1]:
            raise ValueError("no")
        return push(lm, request, location, options)

    editor = make("push", edit_compute=some, edit_compute_many=many)
    found = run(lm, cases, tmp_path, Regime("batch", (4,)), editor)
    assert found["rows"][1]["n_failed"] == 1
    assert lm.weights_digest() == lm.digest


def eleven_cases(cases: CaseSet) -> CaseSet:
    """Two groups of scored cases."""
    prompts = ("{} is in the", "{} came to the", "{} is by the")
    return replace(cases, items=tuple(case(i % 5, f"{i}", prompts[i // 5]) for i in range(11)))


def count_scored(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[list[str], int], None]
) -> list[int]:
    """Count the cases of each call of `Scoring.score`, after *check* of their ids and the count."""
    calls: list[int] = []
    score = Scoring.score

    def counted(self: Scoring, lm: Lm, some: Any, before: Any) -> Any:
        check([each.id for each in some], len(calls))
        calls.append(len(some))
        return score(self, lm, some, before)

    monkeypatch.setattr(Scoring, "score", counted)
    return calls


@pytest.mark.parametrize("kind", ["batch", "batched"])
def test_the_cases_on_a_pile_are_scored_in_shared_passes(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run scores the whole group again, so it ends alike."""

    def stop(ids: list[str], number: int) -> None:
        if number == 3 and len(ids) == 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    stopped = [True]
    calls = count_scored(monkeypatch, stop)
    some, regime = eleven_cases(cases), Regime(kind, (11,), batch=11)
    whole = run(lm, some, tmp_path / "whole", regime, make("push"))
    fresh = [1] * 11 if kind == "batched" else []  # each right after its own edit
    assert calls == [8, 3, *fresh, 8, 3]
    calls.clear()
    stopped.clear()
    for _ in range(2):
        try:
            again = run(lm, some, tmp_path / "cut", regime, make("push"))
        except KeyboardInterrupt:
            assert kind == "batch"
            assert calls == [8, 3, 8]
    assert timeless(again) == timeless(whole)
    assert calls == [8, 3, *fresh, 8, 3]


def test_a_case_that_cannot_be_scored_fails_alone(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(ids: list[str], number: int) -> None:
        if "2" in ids and number:  # not the base
            raise ValueError("too long")

    calls = count_scored(monkeypatch, refuse)
    found = run(lm, cases, tmp_path, Regime("batch", (4,)), make("push"))
    base, row = found["rows"]
    assert calls == [4, 1, 1, 1]
    assert (base["n_failed"], row["n_failed"], row["n"]) == (0, 1, 4)
    assert [*row["failures"]] == ["ValueError('too long')"]


def test_after_a_process_ended_cases_are_scored_one_by_one(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_scored(monkeypatch, lambda *_: None)
    editor, regime = make("push"), Regime("batch", (4,))
    ended, at = Ended("it ended"), tmp_path / "again"
    again = pile_up(lm, cases, [editor], at, 0, scoring(lm), regime, after=ended).finish()
    assert calls == [4, 1, 1, 1, 1]
    whole = run(lm, cases, tmp_path / "whole", regime, editor)
    for name in ("EM", "PM", "NM", "perplexity"):
        assert again["rows"][1][name] == pytest.approx(whole["rows"][1][name]), name


def test_what_is_remembered_counts_with_its_seconds(lm: Lm) -> None:
    def work() -> Update:
        tell_spared(1000.0)
        return Update({})

    assert 1000.0 <= compute_update(lm, work).seconds < 2000.0
    tell_spared(1000.0)  # outside it nobody counts


def test_a_joint_method_makes_one_change_for_each_size(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    editor = make("join", edit_compute_joint=join)
    result = run(lm, cases, tmp_path, Regime("batch", (1, 3)), editor, make("push"))
    assert [p["computed"] for p in points(result, "join").values()] == ["joint", "joint"]
    assert [p["computed"] for p in points(result, "push").values()] == ["sum", "sum"]
    assert facts_of_patches(tmp_path) == [1, 1, 1, 1, 3]
    update = editor.compute_joint([one.request for one in cases.good[:3]])
    with editor.applied(update):
        scores = [score_cases(lm, [seen])[0]["EM"] for seen in cases.good[:3]]
    assert points(result, "join")[3]["EM"] == pytest.approx(100 * sum(scores) / 3)
    assert lm.weights_digest() == lm.digest


def test_parts_hand_on_what_they_carry(lm: Lm, cases: CaseSet, make: Make, tmp_path: Path) -> None:
    """Against a plain loop; and each case is scored right after its own part too."""
    editor = make("join", edit_compute_joint=join)
    regime = Regime("batched", (2, 4), batch=2)
    found = points(run(lm, cases, tmp_path, regime, editor, make("push")), "join")
    assert facts_of_patches(tmp_path) == [1, 1, 1, 1, 2, 2]
    site, carried, own = lm.mlp_out(lm.n_layers - 1), [], []
    base = lm.snapshot(site)
    for part in (cases.good[:2], cases.good[2:]):
        update = editor.compute_joint([one.request for one in part], carried)
        lm.add(site, update.deltas[site].dense())
        carried.append(editor.carry_of(update))
        own += [score_cases(lm, [one])[0]["ES"] for one in part]
        number = len(own)
        scores = [score_cases(lm, [one])[0]["EM"] for one in cases.good[:number]]
        assert found[number]["EM"] == pytest.approx(100 * sum(scores) / number)
        assert found[number]["right_after"]["ES"] == pytest.approx(100 * sum(own) / number)
    lm.restore(site, base)
    assert found[4]["computed"] == "joint"


def test_one_after_the_other_is_batched_by_one(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    editor = make("join", edit_compute_joint=join)
    one = run(lm, cases, tmp_path / "s", Regime("sequential", (4,)), editor)
    other = run(lm, cases, tmp_path / "b", Regime("batched", (4,), batch=1), editor)
    assert points(one, "join")[4]["EM"] == points(other, "join")[4]["EM"]


def test_a_batched_run_that_was_killed_goes_on_and_ends_alike(
    lm: Lm, cases: CaseSet, make: Make, tmp_path: Path
) -> None:
    regime = Regime("batched", (2, 4), batch=2)
    whole = run(lm, cases, tmp_path / "whole", regime, make("join", edit_compute_joint=join))
    calls: list[int] = []

    def interrupted(lm: Lm, requests: Any, locations: Any, options: Size, carried: Any) -> Update:
        calls.append(len(carried))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return join(lm, requests, locations, options, carried)

    cut = make("join", edit_compute_joint=interrupted)
    for _ in range(2):
        try:
            again = run(lm, cases, tmp_path / "cut", regime, cut)
        except KeyboardInterrupt:
            assert lm.weights_digest() == lm.digest
    assert calls == [0, 1, 1]
    assert timeless(again) == timeless(whole)


def test_the_collapse_point_is_the_first_size_below_sixty_per_cent() -> None:
    curve = [
        {"method": name, "size": size, "S": S}
        for name, scores in (("a", (90, 80, 50, 60)), ("b", (90, 60, 55, None)), ("c", (50, 49)))
        for size, S in zip((1, 10, 100, 1000), scores, strict=False)
    ]
    assert regimes.collapse_points(curve) == {"a": 100, "b": 1000, "c": None}
