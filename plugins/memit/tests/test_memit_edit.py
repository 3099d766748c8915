"""MEMIT, EMMET and AlphaEdit on small random models in float64: layers, keys, targets, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Editor, LowRank, Prepared, Request, build_options, load
from lmedit.errors import NotPreparedError, OptionError, RequestError
from lmedit.stats import Moment
from lmedit.stats.solving import Convergence
from lmedit.storage.tensors import Checkpoint
from lmedit.testing import Documents, Texts
from lmedit.tiny import tiny_family, tiny_lm, tiny_shape
from lmedit.values import sample_contexts
from lmedit_memit import joining
from lmedit_memit.preparing import _free_of
from lmedit_memit.remembering import forget
from lmedit_memit.rounds import Rounds
from lmedit_memit.targets import find_targets, seen_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmedit import Lm

    Make = Callable[..., Editor]

FACTS = (
    Request(prompt="{} is in the city of", subject="The tower", target_new="the sea"),
    Request(prompt="{} came down by", subject="A small boat", target_new="the old river"),
    Request(prompt="At night {} runs to", subject="the river", target_new="a home"),
)
SHORT = {"prefixes": [[4, 2]], "steps": 4}


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_a_layer_of_the_user_takes_the_place_of_tuned_layers(name: str) -> None:
    """tune tries single layers, also on a model with tuned layers."""
    lm = tiny_lm()
    lm.tuned = {name: {"options": {"layers": [0, 1], "learning_rate": 0.25}}}
    method = load(name).method
    tuned: Any = build_options(method, {}, lm)
    assert (tuned.layers, tuned.layer) == ((0, 1), 1)
    for given, layers in (({"layer": 3}, (3,)), ({"layer": 3, "span": 2}, (2, 3))):
        span = {"span": 1} | given
        found: Any = build_options(method, span, lm)
        assert (found.layers, found.layer, found.learning_rate) == (layers, 3, 0.25)
    with pytest.raises(OptionError, match="give only one of them"):
        build_options(method, {"layer": 3, "layers": [0, 1]}, lm)


@pytest.fixture
def lm() -> Lm:
    return tiny_lm(2)


@pytest.fixture
def make(lm: Lm, tmp_path: Path) -> Make:
    def build(method: str, **given: Any) -> Editor:
        loaded = load(method)
        options = build_options(loaded.method, SHORT | given, lm)
        prepared: Prepared = loaded.manager.hook.edit_prepare(
            lm=lm,
            options=options,
            corpus=Texts(),
            checkpoint=Checkpoint(tmp_path / "c"),
            sweep=(),
            beside=(),
        )
        return Editor(loaded, lm, options, prepared)

    return build


def equal(one: Any, other: Any) -> bool:
    return one.deltas.keys() == other.deltas.keys() and all(
        torch.equal(delta.dense(), other.deltas[site].dense()) for site, delta in one.deltas.items()
    )


def test_t20_sites_and_ranks(lm: Lm, make: Make) -> None:
    update = make("memit", layers=[1, 2, 3]).compute_joint(FACTS)
    assert set(update.deltas) == {lm.mlp_out(layer) for layer in (1, 2, 3)}
    for delta in update.deltas.values():
        assert int(torch.linalg.matrix_rank(delta.dense())) <= len(FACTS)


def test_t22_one_layer_of_several_is_the_path_of_one_layer(make: Make) -> None:
    """MEMIT with one layer is EMMET with its weight as softness, to the bit."""
    memit = make("memit", layers=[1], weight=7.0)
    emmet = make("emmet", layer=1, softness=7.0)
    assert equal(memit.compute_joint(FACTS), emmet.compute_joint(FACTS))


@pytest.mark.parametrize("seen", ["block", "mlp"])
def test_t23_keys_as_if_are_keys_with_the_weights_written(lm: Lm, make: Make, seen: Any) -> None:
    editor = make("memit", layers=[1, 2])
    update = editor.compute_joint(FACTS)
    templates = sample_contexts(lm, editor.options)  # type: ignore[arg-type]
    rounds = Rounds(lm, FACTS, templates, (1, 2), seen)
    found = rounds.look([1, 2], update.deltas)
    with editor.applied(update):
        expected = Rounds(lm, FACTS, templates, (1, 2), seen).look([1, 2], {})
    for layer in (1, 2):
        torch.testing.assert_close(found.keys[layer], expected.keys[layer], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-9, atol=1e-9)


def test_t23_in_single_precision_too(tmp_path: Path) -> None:
    lm = tiny_family("llama", torch.float32)
    templates = ["{}", "Then. {}"]
    draw = torch.Generator().manual_seed(0)
    deltas: Any = {
        lm.mlp_out(layer): LowRank(
            0.1 * torch.randn(16, 2, generator=draw), torch.randn(2, 40, generator=draw)
        )
        for layer in (1, 2)
    }
    found = Rounds(lm, FACTS, templates, (1, 2), "block").look([1, 2], deltas)
    for site, delta in deltas.items():
        lm.add(site, delta.dense())
    expected = Rounds(lm, FACTS, templates, (1, 2), "block").look([1, 2], {})
    pairs = [(found.keys[2], expected.keys[2]), (found.values, expected.values)]
    for one, other in pairs:
        assert float((one - other).abs().max()) <= 2e-6 * float(other.abs().max())


def test_facts_that_do_not_fit_into_memory_are_worked_in_parts(
    lm: Lm, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update is that of all facts together; nothing is lost."""
    from lmedit_memit import targets

    editor = make("memit", layers=[1, 2])
    expected = editor.compute_joint(FACTS)
    values, run, sizes = targets._values, Rounds._run, []

    def few(lm: Lm, requests: Any, *rest: Any) -> Any:
        sizes.append(len(requests))
        if len(requests) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return values(lm, requests, *rest)

    def narrow(self: Rounds, members: Any, *rest: Any) -> Any:
        if len(members) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, members, *rest)

    monkeypatch.setattr(targets, "_values", few)
    monkeypatch.setattr(Rounds, "_run", narrow)
    forget(lm)
    found = editor.compute_joint(FACTS)
    assert sizes == [3, 1, 1, 1]
    assert found.notes["facts"] == 3
    for site, delta in expected.deltas.items():
        apart = (found.deltas[site].dense() - delta.dense()).abs().max()
        assert apart <= 1e-9 * delta.dense().abs().max()


def test_a_key_is_half_the_bare_prompts_and_half_the_contexts(lm: Lm) -> None:
    templates = ["{}", "Then. {}", "At night. {}"]
    (request,) = FACTS[:1]
    alone = [
        Rounds(lm, [request], [template], (2,), "block").look([2], {}).keys[2]
        for template in templates
    ]
    found = Rounds(lm, [request], templates, (2,), "block").look([2], {}).keys[2]
    expected = 0.5 * alone[0] + 0.25 * (alone[1] + alone[2])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_where_block_inputs_do_not_fit_they_are_run_again(
    lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmedit_memit import rounds

    kept = Rounds(lm, FACTS, ["{}"], (2, 3), "block").look([3], {})
    monkeypatch.setattr(rounds, "KEPT_BYTES", 0)
    again = Rounds(lm, FACTS, ["{}"], (2, 3), "block").look([3], {})
    torch.testing.assert_close(kept.keys[3], again.keys[3], rtol=1e-9, atol=1e-12)


def test_block_inputs_are_dropped_where_memory_is_full(
    lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They belong to all facts. So smaller parts alone do not help, if there are many facts."""
    rounds, run = Rounds(lm, FACTS, ["{}"], (2, 3), "block"), Rounds._run
    expected = rounds.look([3], {})
    assert rounds.kept

    def full(self: Rounds, *rest: Any) -> Any:
        if self.kept is not None:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, *rest)

    monkeypatch.setattr(Rounds, "_run", full)
    found = rounds.look([3], {})
    assert rounds.kept is None
    torch.testing.assert_close(found.keys[3], expected.keys[3], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-9, atol=1e-12)


def test_t30_a_target_does_not_depend_on_the_other_facts(lm: Lm, make: Make) -> None:
    options: Any = make("memit", layers=[1, 2]).options
    templates = sample_contexts(lm, options)
    together = find_targets(lm, FACTS, templates, options, "block").Z
    for number, request in enumerate(FACTS):
        alone = find_targets(lm, [request], templates, options, "block").Z[:, 0]
        torch.testing.assert_close(alone, together[:, number], rtol=1e-9, atol=1e-9)


def test_t11_emmets_answers_hold_exactly(make: Make) -> None:
    """With the bare prompt as the only context, the value becomes the target."""
    exact = make("emmet", layer=2, prefixes=[]).compute_joint(FACTS)
    assert exact.notes["residual left"] < 1e-9
    soft = make("emmet", layer=2, prefixes=[], softness=50.0).compute_joint(FACTS)
    assert soft.notes["residual left"] > 0.1


def test_emmet_refuses_before_it_searches(
    lm: Lm, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The targets of many facts take hours."""

    def no_search(*_: Any) -> None:
        raise AssertionError

    emmet, D = make("emmet", layer=2), lm.mlp_width(2)
    monkeypatch.setattr(joining, "find_targets", no_search)
    fact = FACTS[0]
    other = fact.model_copy(update={"prompt": "{} was built by"})
    with pytest.raises(RequestError, match=r"tower is in .* 'The tower was .* have the same key"):
        emmet.compute_joint([*FACTS, other])
    many = [fact.model_copy(update={"subject": f"The tower {n}"}) for n in range(D + 1)]
    with pytest.raises(RequestError, match=f"{D + 1} exact answers need as many dimensions"):
        emmet.compute_joint(many)


@pytest.mark.parametrize(
    ("family", "place"),
    [
        ("gpt2", "block"),
        ("gptj", "block"),
        ("gpt_neox", "block"),
        ("llama", "block"),
        ("qwen3", "block"),
        ("gemma", "block"),
        ("gemma2", "mlp"),
        ("gemma3_text", "mlp"),
    ],
)
def test_families_with_a_norm_behind_the_mlp_take_targets_at_the_matrix(
    family: str, place: str
) -> None:
    lm = tiny_family(family)
    options: Any = build_options(load("memit").method, {"layers": [1, 2]}, lm)
    assert seen_at(lm, options, FACTS) == place


def test_a_fact_that_asks_for_no_change_leaves_the_notes_finite(make: Make) -> None:
    """The search of such a fact ends at its first pass, so its residual is zero."""
    known = make("memit", layers=[1, 2], stop_loss=1e9).compute_joint(FACTS)
    assert known.notes["residual"] == pytest.approx(0, abs=1e-12)
    assert known.notes["residual left"] is None


def test_more_layers_leave_less(make: Make) -> None:
    left = [
        make("memit", layers=layers, weight=60.0).compute_joint(FACTS).notes["residual left"]
        for layers in ([3], [1, 2, 3])
    ]
    assert left[1] < left[0]


def test_the_memory_is_the_keys_with_the_edit_in_the_model(lm: Lm, make: Make) -> None:
    editor = make("memit", layers=[1, 2], remember=True)
    update = editor.compute_joint(FACTS)
    assert {name: tuple(t.shape) for name, t in update.carry.items()} == {
        "keys.1": (64, 3),
        "keys.2": (64, 3),
    }
    assert make("memit", layers=[1, 2]).compute_joint(FACTS).carry == {}


def test_a_remembered_key_keeps_its_value(lm: Lm, make: Make) -> None:
    editor = make("alphaedit", layers=[2], threshold_share=0.5, ridge=1e-3)
    first = editor.compute_joint(FACTS[:2])
    keys = first.carry["keys.2"]
    with editor.applied(first):
        alone = editor.compute_joint(FACTS[2:])
        after = editor.compute_joint(FACTS[2:], [editor.carry_of(first)])
    (site,) = first.deltas
    moved = [float((update.deltas[site].dense() @ keys).norm()) for update in (alone, after)]
    assert moved[1] < 0.5 * moved[0]


def test_betaedit_renews_the_free_directions_after_some_facts(lm: Lm, make: Make) -> None:
    """Before the first renewal it is the same to the bit; behind it the directions differ."""
    beta = {"layers": [2], "threshold_share": 0.5, "ridge": 1e-2, "weight": 5.0}
    fixed, late, soon = (make("alphaedit", **beta, renew_after=n) for n in (10**6, 3, 2))
    first = fixed.compute_joint(FACTS[:2])
    carried = {
        name: [editor.carry_of(first)]
        for name, editor in {"fixed": fixed, "late": late, "soon": soon}.items()
    }
    with fixed.applied(first):
        same = fixed.compute_joint(FACTS[2:], carried["fixed"])
        assert equal(late.compute_joint(FACTS[2:], carried["late"]), same)
        renewed = soon.compute_joint(FACTS[2:], carried["soon"])
    assert not equal(renewed, same)
    never = make("alphaedit", **beta).compute_joint(FACTS[:2])
    (site,) = never.deltas
    torch.testing.assert_close(never.deltas[site].dense(), first.deltas[site].dense())


def test_pmets_attention_delta_is_searched_and_not_written(lm: Lm, make: Make) -> None:
    pmet = make("memit", layers=[1, 2], preset="pmet").compute_joint(FACTS)
    plain = make("memit", layers=[1, 2], target="mlp", spread="sqrt").compute_joint(FACTS)
    assert pmet.deltas.keys() == plain.deltas.keys()
    assert not equal(pmet, plain)


def test_too_few_keys_for_the_null_space(lm: Lm, tmp_path: Path) -> None:
    loaded = load("alphaedit")
    options = build_options(loaded.method, SHORT | {"layers": [1]}, lm)
    few = r"keys are too few for 64 dimensions \(at least 640\); give a larger --corpus$"
    with pytest.raises(NotPreparedError, match=few):
        loaded.manager.hook.edit_prepare(
            lm=lm,
            options=options,
            corpus=Documents(10),
            checkpoint=Checkpoint(tmp_path / "c"),
            sweep=(),
            beside=(),
        )


@pytest.mark.parametrize(
    ("tolerance", "remedy"),
    [
        (0.2, "the count ended before the text did; give -o tolerance null"),
        (0.01, "give a larger --corpus"),
        (None, "give a larger --corpus"),
    ],
)
def test_the_remedy_for_few_keys_asks_whether_text_is_left(
    lm: Lm, tolerance: float | None, remedy: str
) -> None:
    options = build_options(load("alphaedit").method, {"tolerance": tolerance}, lm)
    moment = Moment(torch.eye(64).double(), 300, 9, (Convergence(300, 0.1, 0.05),))
    with pytest.raises(NotPreparedError, match=f"; {remedy}$"):
        _free_of(moment, options, "1")  # type: ignore[arg-type]


def test_the_layers_are_published_or_end_at_a_layer() -> None:
    method = load("memit").method
    shape = tiny_shape("gpt2", 48)
    published: Any = build_options(method, {}, shape)
    assert published.layers == (13, 14, 15, 16, 17)
    assert (published.weight, published.learning_rate, published.steps) == (20000.0, 0.5, 20)
    given: Any = build_options(method, {"layer": 9, "span": 3}, tiny_shape("gpt2", 12))
    assert given.layers == (7, 8, 9)
    assert given.weight == 16.0  # the number of inputs of the tiny matrix
    assert build_options(method, {}, tiny_shape("gpt2", 12)).untuned


def test_tune_tries_less_weight_of_text_and_both_rates() -> None:
    """With lambda = D, much of the residual of a frequent subject is left (smollm2: a half)."""
    tries = {name: load(name).method.options.tries(tiny_lm(2)) for name in ("memit", "alphaedit")}
    assert tries["memit"]["weight"] == (64.0, 6.4)  # D of the tiny matrix, and a tenth of it
    assert tries["alphaedit"]["ridge_share"] == (1.0, 0.1)
    assert all(each["learning_rate"] == (0.1, 0.5) for each in tries.values())


@pytest.mark.parametrize("layers", [[3, 2], [1, 1], [0, 12], []])
def test_layers_that_do_not_ascend_are_refused(layers: list[int]) -> None:
    with pytest.raises(OptionError, match="must ascend and lie in 0 to 11"):
        build_options(load("memit").method, {"layers": layers}, tiny_shape("gpt2", 12))
