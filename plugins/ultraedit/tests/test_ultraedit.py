"""UltraEdit and MALMEN on tiny random models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Checkpoint, Editor, Lm, Prepared, Request, build_options, load
from lmedit.errors import ArtifactError, NotPreparedError, OptionError
from lmedit.hyper import answer_factors, row_of
from lmedit.hyper.examples import examples_from
from lmedit.hyper.training import _Trainer
from lmedit.metrics.contamination import trained_on
from lmedit.pipeline import call_prepare, work_of
from lmedit.testing import Interrupted, Records
from lmedit.tiny import FAMILIES, tiny_family, tiny_shape
from lmedit_ultraedit.malmen import network_of
from lmedit_ultraedit.options import MALMEN, ULTRAEDIT
from lmedit_ultraedit.statistics import fold, read_moments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit import Update

FACTS = (
    Request(prompt="{} is in the city of", subject="The tower", target_new="the sea"),
    Request(prompt="{} came down by", subject="A small boat", target_new="the old river"),
    Request(prompt="At night {} runs to", subject="the river", target_new="a home"),
    Request(prompt="Nobody in the city knew how old the tower was, nor", target_new="its age"),
)
SMALL = {"steps": 6, "validate_every": 3, "batch": 8, "rank": 4, "warmup": 0, "decay": False}


@pytest.fixture
def lm() -> Lm:
    return tiny_family("gpt2")


def options_of(lm: Lm, method: str, **given: Any) -> Any:
    return build_options(load(method).method, given, lm)


def ultra(lm: Lm, prepared: Prepared | None = None, **given: Any) -> Editor:
    options = options_of(lm, "ultraedit", **given)
    return Editor(load("ultraedit"), lm, options, prepared or Prepared())


def nll(lm: Lm, request: Request) -> torch.Tensor:
    prompt, target = lm.with_target(request.text, request.target_new)
    logits = lm.logits(lm.batch([prompt + target]))[0, len(prompt) - 1 : -1]
    return -logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum()


def same(one: Update, other: Update) -> bool:
    return one.deltas.keys() == other.deltas.keys() and all(
        torch.equal(delta.dense(), other.deltas[site].dense()) for site, delta in one.deltas.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_the_factors_are_those_of_the_gradient(family: str) -> None:
    """In the last block only the tokens that predict the answer have a gradient."""
    lm = tiny_family(family)
    sites = lm.mlp_matrices(lm.n_layers - 1)
    rows = [row_of(lm, fact.text, fact.target_new) for fact in FACTS]
    found = answer_factors(lm, rows, sites, lm.n_layers - 1)
    weights = [lm.model.get_parameter(site.parameter).requires_grad_() for site in sites]
    gradients = torch.autograd.grad(sum(nll(lm, fact) for fact in FACTS), weights)
    for site, gradient in zip(sites, gradients, strict=True):
        factors = found[site]
        h, g = factors.x[factors.mask], factors.delta[factors.mask]
        assert len(h) == sum(len(target) for _, target in rows)
        expected = (gradient.T if site.transposed else gradient).float()
        assert (g.T @ h - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_step_lowers_the_loss_in_every_family(family: str) -> None:
    lm = tiny_family(family)
    editor = ultra(lm, layers=[1, 2], edit_rate=1e-3)
    update = editor.compute_joint(FACTS)
    assert set(update.deltas) == {lm.mlp_out(layer) for layer in (1, 2)}
    before = float(sum(nll(lm, fact) for fact in FACTS))
    with editor.applied(update):
        assert float(sum(nll(lm, fact) for fact in FACTS)) < before


def test_more_rows_than_a_group_are_those_of_parts(lm: Lm) -> None:
    rows = [row_of(lm, case.request.text, case.request.target_new) for case in Records()]
    assert len(rows) > 32
    site = lm.mlp_out(2)
    whole = answer_factors(lm, rows, [site], 2)[site]
    parts = [answer_factors(lm, [row], [site], 2)[site] for row in rows]
    for number, part in enumerate(parts):
        mask = whole.mask[number]
        torch.testing.assert_close(whole.delta[number][mask], part.delta[0], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(whole.x[number][mask], part.x[0], atol=1e-5, rtol=1e-4)


def test_t27_malmen_without_blocks_and_with_ridge_one_is_ultraedit(lm: Lm) -> None:
    """To the bit: the same moments, the step length 1, the ridge e^0."""
    shared = {"matrices": {"c_fc": [1], "c_proj": [1, 2]}, "edit_rate": 1.0}
    options = options_of(lm, "malmen", hidden=0, **shared)
    network = network_of(lm, options)
    rows = [row_of(lm, fact.text, fact.target_new) for fact in FACTS]
    network.prime(answer_factors(lm, rows, options.sites(lm), 1))
    prepared = Prepared({name: t.detach() for name, t in network.state_dict().items()})
    malmen = Editor(load("malmen"), lm, options, prepared)
    expected = ultra(lm, **shared).compute_joint(FACTS)
    found = malmen.compute_joint(FACTS)
    assert same(found, expected)
    assert len(found.deltas) == 3
    assert all(float(delta.dense().abs().max()) > 0 for delta in found.deltas.values())


def test_t27_untrained_blocks_change_nothing(lm: Lm) -> None:
    shared = {"layers": [1, 2], "edit_rate": 1.0}
    rows = [row_of(lm, fact.text, fact.target_new) for fact in FACTS]
    updates = []
    for more in ({"hidden": 0}, {"hidden": 3, "rank": 4}):
        options = options_of(lm, "malmen", **more, **shared)
        network = network_of(lm, options)
        network.prime(answer_factors(lm, rows, options.sites(lm), 1))
        z = torch.randn(5, 56, generator=torch.Generator().manual_seed(0))
        blocks, mode = network.blocks_of(1)
        assert torch.equal(blocks(z, mode), z)
        prepared = Prepared({name: t.detach() for name, t in network.state_dict().items()})
        updates.append(Editor(load("malmen"), lm, options, prepared).compute_joint(FACTS))
    for site, delta in updates[0].deltas.items():
        expected = delta.dense()
        apart = (updates[1].deltas[site].dense() - expected).abs().max()
        assert apart <= 1e-5 * expected.abs().max()  # the blocks compute in single precision


def test_the_moments_of_earlier_edits_count(lm: Lm) -> None:
    """A second batch is normalised by the rows of both."""
    editor = ultra(lm, layers=[1, 2])
    first, second = editor.compute_joint(FACTS[:2]), editor.compute_joint(FACTS[2:])
    both = editor.compute_joint(FACTS)
    shapes = [(16, 40)]
    found = fold([read_moments(update.carry, shapes) for update in (first, second)])
    expected = read_moments(both.carry, shapes)
    for name, tensor in expected[16, 40].tensors().items():
        torch.testing.assert_close(found[16, 40].tensors()[name], tensor, rtol=1e-4, atol=1e-6)
    after = editor.compute_joint(FACTS[2:], [editor.carry_of(first)])
    assert not same(after, second)
    assert same(editor.compute_joint(FACTS[2:], [editor.carry_of(first)]), after)
    assert torch.equal(after.carry["mean.16x40"], second.carry["mean.16x40"])


def test_one_token_alone_changes_nothing_and_says_so(lm: Lm) -> None:
    """The released code gives NaN from there on."""
    fact = FACTS[0].model_copy(update={"target_new": "the"})
    assert len(row_of(lm, fact.text, "the")[1]) == 1
    editor = ultra(lm, layers=[1])
    update = editor.compute_joint([fact])
    assert all(float(delta.dense().abs().max()) == 0 for delta in update.deltas.values())
    (remark,) = update.notes["remarks"]
    assert remark.startswith("the gradients are normalised by 1 token(s) only")
    assert "give -o warm_up 100" in remark
    many = [case.request for case in Records()]
    assert editor.compute_joint(many).notes["remarks"] == []
    after = editor.compute_joint([fact], [editor.carry_of(editor.compute_joint(many))])
    assert all(float(delta.dense().abs().max()) > 0 for delta in after.deltas.values())


def test_the_same_fact_twice_is_a_fact_of_double_weight(lm: Lm) -> None:
    update = ultra(lm, layers=[1]).compute_joint([FACTS[0], FACTS[0], FACTS[1]])
    assert update.notes["facts"] == 3
    assert all(bool(delta.dense().isfinite().all()) for delta in update.deltas.values())


def test_more_tokens_than_dimensions_give_a_matrix(lm: Lm) -> None:
    update = ultra(lm, layers=[1]).compute_joint([case.request for case in Records()])
    (delta,) = update.deltas.values()
    assert set(delta.tensors()) == {"values"}


def prepare(method: str, lm: Lm, options: Any, folder: Path, corpus: Any = None) -> Prepared:
    return call_prepare(load(method), lm, options, corpus or Records(), Checkpoint(folder))


def test_a_warm_up_comes_before_the_first_edit(lm: Lm, tmp_path: Path) -> None:
    options = options_of(lm, "ultraedit", layers=[1, 2], preset="stable", warm_up=20)
    prepared = prepare("ultraedit", lm, options, tmp_path / "c")
    assert prepared.facts == {"examples": 20}
    assert options.needs_preparation
    assert not options_of(lm, "ultraedit").needs_preparation
    warm = Editor(load("ultraedit"), lm, options, prepared)
    one = FACTS[0].model_copy(update={"target_new": "the"})
    update = warm.compute_joint([one])
    assert update.notes["remarks"] == []
    assert all(float(delta.dense().abs().max()) > 0 for delta in update.deltas.values())
    seen = [case for case in Records() if trained_on(prepared, case.request)]
    assert len(seen) == 20
    assert set(update.carry) == {f"{n}.16x40" for n in ("number", "mean", "squares", "spread")}


def test_without_cases_there_is_no_warm_up(lm: Lm, tmp_path: Path) -> None:
    options = options_of(lm, "ultraedit", layers=[1], warm_up=20)
    with pytest.raises(NotPreparedError, match="give --corpus counterfact"):
        call_prepare(load("ultraedit"), lm, options, None, Checkpoint(tmp_path / "c"))


def test_a_carry_of_other_matrices_is_refused_by_name(lm: Lm) -> None:
    one, other = ultra(lm, layers=[1]), ultra(lm, layers=[2])
    carried = one.carry_of(one.compute_joint(FACTS))
    with pytest.raises(ArtifactError, match=r"was made with matrices \{'c_proj': \[1\]\}, not"):
        other.compute_joint(FACTS, [carried])


def test_a_carry_without_a_shape_is_refused(lm: Lm) -> None:
    with pytest.raises(ArtifactError, match="no mean of matrices 16 x 40; use the same"):
        read_moments({"number.16x40": torch.zeros(())}, [(16, 40)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [1], "matrices": {"c_proj": [1]}}, "both name blocks"),
        ({"matrices": {"gate_proj": [1]}}, "has no MLP matrix 'gate_proj'; it has c_fc, c_proj"),
        ({"matrices": {"c_proj": [4]}}, "has no layer 4; layers are 0 to 3"),
        ({"matrices": {}}, "matrices: it names no block"),
        ({"layers": []}, "layers names no block"),
        ({"layers": [9]}, "no layer 9"),
        ({"warm_up": 5}, "5 cases are too few"),
        ({"edit_rate": 0}, "edit_rate"),
        ({"ridge": 0}, "ridge"),
    ],
)
def test_wrong_options_are_refused(lm: Lm, given: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, Exception), match=message) as caught:
        options_of(lm, "ultraedit", **given)
    assert type(caught.value).__module__ == "lmedit.errors"


def test_the_matrices_are_published_or_chosen_by_depth() -> None:
    gptj: Any = options_of(tiny_shape("gptj", 28), "ultraedit")
    assert gptj.matrices == {"fc_out": tuple(range(18, 27))}
    assert (gptj.untuned, gptj.origin, gptj.rate_for(4096, 16384)) == (False, "published", 1e-6)
    other: Any = options_of(tiny_shape("gpt2", 28), "ultraedit")
    assert other.matrices == {"c_proj": tuple(range(18, 27))}
    assert (other.untuned, other.origin) == (True, "depth (untuned)")
    given: Any = options_of(tiny_shape("gptj", 28), "ultraedit", layers=[3])
    assert (given.untuned, given.origin, given.matrices) == (False, "given", {"fc_out": (3,)})
    small: Any = options_of(tiny_shape("gpt2", 12), "malmen")
    assert small.matrices == {"c_proj": tuple(range(6, 12))}


@pytest.mark.parametrize(("family", "blocks"), [*ULTRAEDIT, *MALMEN])
def test_published_matrices_exist(family: str, blocks: int) -> None:
    """In a model of the family and the depth; the names are those of transformers."""
    depth = "n_layer" if family in {"gpt2", "gptj"} else "num_hidden_layers"
    lm = tiny_family(family, **{depth: blocks})
    for method, table in (("ultraedit", ULTRAEDIT), ("malmen", MALMEN)):
        if (family, blocks) in table:
            found: Any = options_of(lm, method)
            assert found.origin == "published"
            assert found.matrices == table[family, blocks]["matrices"]
            assert len(found.sites(lm)) == sum(map(len, found.matrices.values()))


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 30])
def test_a_model_of_any_depth_has_matrices(blocks: int) -> None:
    shape = tiny_shape("gpt2", blocks)
    found: Any = options_of(shape, "ultraedit")
    assert found.blocks
    assert max(found.blocks) == max(0, blocks - 2)


def test_a_change_has_a_cost(lm: Lm) -> None:
    options = options_of(lm, "ultraedit")
    one, many = (work_of(load("ultraedit"), lm, options, n)["edit"] for n in (1, 1000))
    assert many.flops > 100 * one.flops
    assert "prepare" not in work_of(load("ultraedit"), lm, options, 1)
    warm = options_of(lm, "ultraedit", warm_up=20)
    assert work_of(load("ultraedit"), lm, warm, 1)["prepare"].flops > 0


# ---- MALMEN's training


def trained(lm: Lm, folder: Path, **given: Any) -> Prepared:
    options = options_of(lm, "malmen", **SMALL, **given)
    return prepare("malmen", lm, options, folder)


def test_the_training_lowers_the_loss(lm: Lm, tmp_path: Path) -> None:
    prepared = trained(lm, tmp_path / "c", layers=[2, 3], learning_rate=3e-3, edit_rate_rate=0.1)
    curve = prepared.facts["curve"]
    assert [point["step"] for point in curve] == [0, 3, 6]
    assert min(point["loss"] for point in curve[1:]) < curve[0]["loss"]
    assert prepared.tensors["log_rate"].shape == prepared.tensors["log_ridge"].shape == (2,)
    start = trained(lm, tmp_path / "d", layers=[2, 3], learning_rate=1e-30, edit_rate_rate=1e-30)
    assert float((prepared.tensors["log_rate"] - start.tensors["log_rate"]).abs().min()) > 1e-3
    assert torch.equal(start.tensors["log_ridge"], torch.zeros(2))


def test_parts_of_a_step_give_the_gradient_of_the_whole(lm: Lm) -> None:
    """The edits share one change; memory bounds only how many are scored at once."""
    found: list[list[torch.Tensor]] = []
    for at_once in (8, 3, 1):
        options = options_of(lm, "malmen", layers=[1, 2], at_once=at_once, **SMALL)
        network = network_of(lm, options)
        for parameter in network.parameters():
            draw = torch.Generator().manual_seed(parameter.numel())
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        examples = examples_from(lm, Records(), 40, 0)
        trainer = _Trainer(lm, network, examples, options, None)
        network.prime(trainer.frozen.factors(examples.training))
        trainer._gradient(trainer._picks(0))
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        assert len(found[-1]) == len(list(network.parameters()))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert float((one - two).norm()) <= 1e-3 * float(one.norm()) + 1e-12


def test_an_interrupted_training_ends_with_the_same_bits(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmedit.hyper import training

    whole = trained(lm, tmp_path / "whole", layers=[1, 2])
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    steps = 0
    original = _Trainer.advance

    def advance(self: _Trainer) -> float:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Interrupted
        return original(self)

    monkeypatch.setattr(_Trainer, "advance", advance)
    with pytest.raises(Interrupted):
        trained(lm, tmp_path / "cut", layers=[1, 2])
    again = trained(lm, tmp_path / "cut", layers=[1, 2])
    assert steps == 7
    assert whole.tensors.keys() == again.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name


def test_a_trained_editor_edits_all_facts_with_one_change(lm: Lm, tmp_path: Path) -> None:
    options = options_of(lm, "malmen", layers=[1, 2], **SMALL)
    prepared = prepare("malmen", lm, options, tmp_path / "c")
    editor = Editor(load("malmen"), lm, options, prepared)
    update = editor.compute_joint(FACTS)
    assert (update.notes["facts"], update.carry) == (4, {})
    alone = editor.compute_joint(FACTS[:1])
    assert not same(update, alone)


def test_a_released_file_is_refused(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "malmen.pt"
    torch.save({"model": {"u": torch.ones(1)}}, path)
    options = options_of(lm, "malmen", checkpoint=str(path))
    with pytest.raises(ArtifactError, match="malmen: the layout of released editors such as"):
        prepare("malmen", lm, options, tmp_path / "c")


def numbers(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def test_the_step_by_width_keeps_what_the_outputs_gain() -> None:
    shape = tiny_shape("gpt2", 28)
    few, many = (options_of(shape, "ultraedit", layers=layers) for layers in ([3], [3, 4, 5]))
    assert few.rate_for(64, 256) == pytest.approx(3 * many.rate_for(64, 256))
    assert numbers([few.rate_for(64, 256) / few.rate_for(64, 512)]) == [2.0]
    assert numbers([few.rate_for(64, 256) / few.rate_for(256, 256)]) == [2.0]
