"""KN end to end on tiny random models: selection, update, operations, bad input."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from lmedit import Editor, Lm, LowRank, Prepared, Request, build_options, load
from lmedit.errors import OptionError, RequestError
from lmedit.tiny import tiny_family, tiny_lm
from lmedit_kn.neurons import enhanced, rescaling, scaled, suppressed
from lmedit_kn.selection import asking, questions
from lmedit_kn.stream import mlps_at_prompt

ONE = Request(prompt="{} is in the city of", subject="The tower", target_new="the")
TWO = ONE.model_copy(update={"target_new": "the sea"})
TEXT = "Nobody in the city knew how old The tower"

loaded = cache(load)


@pytest.fixture
def lm() -> Lm:
    return tiny_lm(3)


def editor(lm: Lm, **given: Any) -> Editor:
    method = loaded("kn")
    return Editor(method, lm, build_options(method.method, given, lm), Prepared())


def test_evidence_tells_what_each_stage_leaves(lm: Lm) -> None:
    location = editor(lm, adaptive_threshold=0.3).locate(ONE)
    found = location.evidence
    L, D = lm.n_layers, 64
    assert found["neurons in all"] == L * D
    assert found["prompts"] == len(found["after coarse"]) == 5
    assert all(0 < left < L * D for left in found["after coarse"])
    assert sum(found["coarse by layer"]) == pytest.approx(sum(found["after coarse"]) / 5)
    assert found["after fine"] == len(found["neurons"]) == sum(found["fine by layer"])
    assert found["after fine"] <= max(found["after coarse"])
    assert 0 < found["p(answer)"] < 1
    scores = [score for *_, score in found["neurons"]]
    assert scores == sorted(scores, reverse=True)
    layers = {layer for layer, *_ in found["neurons"]}
    assert {site.parameter for site in location.sites} == {lm.mlp_out(i).parameter for i in layers}
    (chart,) = location.charts
    assert chart.series["fine"] == tuple(found["fine by layer"])


def test_unrefined_is_the_union_and_one_prompt_needs_no_refinement(lm: Lm) -> None:
    union = editor(lm, refine=False).locate(ONE).evidence
    fine = editor(lm, share=0.5).locate(ONE).evidence
    assert union["after fine"] >= max(union["after coarse"]) > 0
    assert {tuple(n[:2]) for n in fine["neurons"]} < {tuple(n[:2]) for n in union["neurons"]}
    alone = editor(lm, frames=[], share=0.9).locate(ONE).evidence
    assert alone["after coarse"] == [alone["after fine"]]


def test_negative_prompts_drop_their_neurons(lm: Lm) -> None:
    every = editor(lm, refine=False, frames=[]).locate(ONE).evidence["neurons"]
    fewer = editor(lm, refine=False, frames=[], negative_prompts=[TEXT]).locate(ONE).evidence
    assert {tuple(n[:2]) for n in fewer["neurons"]} < {tuple(n[:2]) for n in every}
    with pytest.raises(RequestError, match="no neuron is left"):
        editor(lm, frames=[], negative_prompts=[ONE.text]).locate(ONE)


def test_prompts_come_from_the_request_and_the_options_alone() -> None:
    given = {"prompts": ["Where is {}?"], "frames": ["So, {}"]}
    options = build_options(loaded("kn").method, given)
    assert asking(ONE, options) == [  # type: ignore[arg-type]
        ONE.text,
        f"So, {ONE.text}",
        "Where is The tower?",
    ]


def test_answers_of_several_tokens_are_read_one_after_the_other(lm: Lm) -> None:
    """Defects B6 and B8 are the preset's, not ours."""
    ours, theirs = (
        questions(lm, ONE.text, "the sea", build_options(loaded("kn").method, {"preset": preset}))
        for preset in ("lobatto", "rome")
    )
    prompt, sea = lm.with_target(ONE.text, "the sea")
    assert len(sea) > 1
    assert ours == [(prompt + sea[:i], token) for i, token in enumerate(sea)]
    assert all(ids == prompt for ids, _ in theirs)
    assert lm.decode([token for _, token in theirs]) == "the sea"


def neurons_of(update: Any, evidence: Any) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for layer, place, _ in evidence["neurons"]:
        places.setdefault(f"transformer.h.{layer}.mlp.c_proj.weight", []).append(place)
    assert set(places) == {site.parameter for site in update.deltas}
    return places


@pytest.mark.parametrize("request_", [ONE, TWO])
def test_the_update_adds_one_vector_at_the_selected_neurons(lm: Lm, request_: Request) -> None:
    """The change is d s_S^T, rank one in each layer; s are the signs of the activations."""
    ed = editor(lm, lambda_old=1.5, lambda_new=0.5, limit=None, levelled=False, enough=None)
    update, evidence = ed.compute(request_), ed.locate(request_).evidence
    E = lm.model.get_input_embeddings().weight.detach()
    old = int(lm.next_probabilities(ONE.text).argmax())
    new = lm.with_target(ONE.text, request_.target_new)[1]
    d = 0.5 * E[new].sum(0) - 1.5 * E[old]
    for site, delta in update.deltas.items():
        places = neurons_of(update, evidence)[site.parameter]
        assert isinstance(delta, LowRank)
        dense = delta.dense()
        expected = torch.zeros_like(dense)
        layer = int(site.parameter.split(".")[2])
        signs = mlps_at_prompt(lm, ONE.text, [layer])[layer].signs(places)
        expected[:, places] = d[:, None] * signs
        torch.testing.assert_close(dense, expected)
        assert torch.linalg.matrix_rank(dense) == 1


def test_presets_differ_as_published(lm: Lm) -> None:
    """B7: the ROME comparison subtracts twice and adds once; EleutherAI adds twice."""
    E = lm.model.get_input_embeddings().weight.detach()
    old = int(lm.next_probabilities(ONE.text).argmax())
    bare = lm.tokenizer("the", add_special_tokens=False)["input_ids"]
    spaced = lm.with_target(ONE.text, "the")[1]
    expected = {
        "rome": E[bare].sum(0) - 2 * E[old],
        "eleuther": 2 * E[spaced].sum(0) - 2 * E[old],
        "dai": 8 * E[spaced].sum(0) - E[lm.with_target(ONE.text, "river")[1][0]],
    }
    request = ONE.model_copy(update={"target_true": "river"})
    for preset, d in expected.items():
        (delta, *_) = editor(lm, preset=preset).compute(request).deltas.values()
        assert isinstance(delta, LowRank)
        torch.testing.assert_close(delta.left[:, 0], d)


def test_the_old_answer_may_be_the_given_one(lm: Lm) -> None:
    request = ONE.model_copy(update={"target_true": "river"})
    ed = editor(lm, old="given")
    assert ed.locate(request).evidence["answer"] == "river"
    river = lm.with_target(ONE.text, "river")[1][0]
    assert ed.compute(request).notes["old"] == lm.decode([river])


def test_more_of_the_answer_with_the_neurons_doubled_and_less_without(lm: Lm) -> None:
    ed = editor(lm)
    found = ed.probe(ONE, ed.locate(ONE)).values
    assert found["silenced, %"] < 0 < found["doubled, %"]
    assert abs(found["random silenced, %"]) < abs(found["silenced, %"])
    assert found == ed.probe(ONE, ed.locate(ONE)).values


@pytest.mark.parametrize(("operation", "factor"), [("suppress", 0), ("erase", 0), ("enhance", 2)])
def test_operations_as_updates_do_what_the_contexts_do(
    lm: Lm, operation: str, factor: float
) -> None:
    ed = editor(lm, operation=operation)
    update = ed.compute(ONE)
    neurons = [(layer, place) for layer, place, _ in ed.locate(ONE).evidence["neurons"]]
    batch = lm.batch([lm.encode(TEXT)])
    clean = lm.logits(batch)
    with {0: suppressed, 2: enhanced}[factor](lm, neurons):
        expected = lm.logits(batch)
    assert (expected - clean).abs().max() > 1e-3
    with ed.applied(update):
        torch.testing.assert_close(lm.logits(batch), expected, atol=1e-10, rtol=1e-10)
    assert torch.equal(lm.logits(batch), clean)


def test_pre_activations_can_be_scaled_too() -> None:
    """A silenced gate closes: nothing of the neuron's up-projection passes."""
    lm = tiny_family("phi3")
    batch = lm.batch([lm.encode(TEXT)])
    with suppressed(lm, [(1, 5)], "pre_act"):
        silenced = lm.logits(batch)
    with suppressed(lm, [(1, 5)]):
        torch.testing.assert_close(silenced, lm.logits(batch))  # silu(0) = 0
    with enhanced(lm, [(1, 5)], "pre_act"):
        assert not torch.equal(silenced, lm.logits(batch))


def test_scaling_by_one_changes_nothing_and_order_does_not_matter(lm: Lm) -> None:
    batch = lm.batch([lm.encode(TEXT)])
    with scaled(lm, [(0, 3), (2, 1)], 1.0):
        torch.testing.assert_close(lm.logits(batch), lm.logits(batch))
    assert rescaling(lm, [(2, 1), (0, 3)], 2.0).deltas.keys() == (
        rescaling(lm, [(0, 3), (2, 1), (0, 3)], 2.0).deltas.keys()
    )


def test_an_untied_head_has_embeddings_of_its_own() -> None:
    lm = tiny_family("llama", tie_word_embeddings=False)
    found = [
        next(iter(editor(lm, embedding=which).compute(ONE).deltas.values())).tensors()["left"]
        for which in ("output", "input")
    ]
    assert not torch.allclose(*found)


def test_half_precision_models_are_attributed_and_edited() -> None:
    lm = tiny_family("gpt2", torch.bfloat16)
    ed = editor(lm)
    update = ed.compute(ONE)
    assert all(delta.tensors()["left"].dtype == torch.float32 for delta in update.deltas.values())
    with ed.applied(update):
        pass


def test_embeddings_of_another_width_are_refused() -> None:
    lm = tiny_family("opt", word_embed_proj_dim=8)
    with pytest.raises(RequestError, match="width 8, its residual stream 16"):
        editor(lm).compute(ONE)


@pytest.mark.parametrize(
    ("given", "points"),
    [
        ({}, 5),
        ({"steps": 9}, 9),
        ({"preset": "gauss"}, 6),
        ({"site": "pre_act"}, 20),
        ({"preset": "midpoint"}, 20),
        ({"preset": "rome"}, 20),
        ({"preset": "eleuther"}, 20),
        ({"preset": "dai"}, 20),
    ],
)
def test_few_points_do_for_the_rules_of_gauss_and_lobatto(
    given: dict[str, Any], points: int
) -> None:
    assert build_options(loaded("kn").method, given).m == points  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        ({"threshold": 0.1, "percentile": 99}, "threshold and percentile exclude each other"),
        ({"prompts": ["no place"]}, "prompts: 'no place' must hold {}"),
        ({"frames": ["{} {}"]}, "frames: '{} {}' must hold {}"),
        ({"steps": 0}, "steps"),
        ({"steps": 1}, "steps: rule lobatto needs both ends; give 2 or more"),
        ({"percentile": 100}, "percentile"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], culprit: str) -> None:
    with pytest.raises(OptionError, match=culprit.replace("{", r"\{")):
        build_options(loaded("kn").method, given)


def test_models_with_a_mask_token_are_out_of_scope() -> None:
    from transformers import BertConfig, BertForMaskedLM

    from lmedit.errors import ModelError
    from lmedit.tiny import byte_tokenizer

    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    with pytest.raises(ModelError, match=r"BertForMaskedLM .*not a decoder"):
        Lm(BertForMaskedLM(config), byte_tokenizer())


def test_the_same_seed_gives_the_same_neurons_twice(lm: Lm) -> None:
    again = copy.deepcopy(editor(lm).locate(ONE).evidence)
    assert editor(lm).locate(ONE).evidence == again
