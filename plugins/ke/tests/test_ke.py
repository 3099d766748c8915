"""KE on tiny random models (invariants 25 to 27), and the released layout."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Checkpoint, Editor, Lm, LowRank, Prepared, Request, build_options, load
from lmedit.errors import ArtifactError
from lmedit.hyper import EditBatch, edit_factors, row_of
from lmedit.tiny import FAMILIES, tiny_family
from lmedit_ke import edit_prepare, network_of
from lmedit_ke.equations import split, update

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit_ke.options import KeOptions

loaded = cache(load)
ONE = Request(prompt="{} is in the city of", subject="The tower", target_new="the")
TWO = ONE.model_copy(update={"target_new": "the old sea"})
B, N, OUT, IN = 2, 3, 5, 4


def draws(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = {
        "x": (B, N, IN),
        "delta": (B, N, OUT),
        "a_out": (B, OUT),
        "a_in": (B, IN),
        "b_out": (B, OUT),
        "b_in": (B, IN),
        "s": (B, 1),
    }
    return {name: torch.randn(size, generator=draw).double() for name, size in sizes.items()}


def dense(d: dict[str, torch.Tensor], scale: float = 1.0) -> torch.Tensor:
    a, b = (d["a_out"], d["a_in"]), (d["b_out"], d["b_in"])
    left, right = update(d["x"], d["delta"], a, b, d["s"], scale)
    return left @ right


def test_the_factors_are_the_formula_exactly() -> None:
    d = draws()
    gradient = d["delta"].mT @ d["x"]
    A, Bm = (d[f"{n}_out"][:, :, None] * d[f"{n}_in"][:, None, :] for n in "ab")
    expected = torch.sigmoid(d["s"])[:, :, None] * (gradient * A + Bm)
    torch.testing.assert_close(dense(d), expected)
    torch.testing.assert_close(dense(d, 0.25), 0.25 * expected)  # linear in scale


def test_the_rank_is_at_most_the_gradients_and_one() -> None:
    """A gradient of rank one gives a change of rank two at most."""
    d = draws()
    d["delta"][:, 1:] = 0  # a gradient of rank one
    assert (torch.linalg.matrix_rank(dense(d)) <= 2).all()


def test_with_neutral_maps_it_is_a_gradient_step() -> None:
    """A, B and the gate neutral: the change is the scaled gradient."""
    d = draws()
    output = torch.cat(
        [torch.full((B, IN), 0.5 * OUT), torch.zeros(B, OUT + IN + OUT), torch.full((B, 1), 50.0)],
        dim=1,
    ).double()
    a_c, a_r, b_c, b_r, s = split(output, OUT, IN)
    left, right = update(d["x"], d["delta"], (a_r, a_c), (b_r, b_c), s, 1.0)
    torch.testing.assert_close(left @ right, 0.5 * d["delta"].mT @ d["x"])


def test_the_output_is_split_in_the_released_order() -> None:
    output = torch.arange(2.0 * (OUT + IN) + 1)[None]
    a_c, a_r, b_c, b_r, s = split(output, OUT, IN)
    assert a_c[0].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(a_r[0], torch.arange(4.0, 9).softmax(-1))
    assert b_c[0].tolist() == [9, 10, 11, 12]
    assert b_r.sum().item() == pytest.approx(1)
    assert s.tolist() == [[18]]


def options(lm: Lm, **given: Any) -> KeOptions:
    small = {"hidden": 6, "condition": 5, "steps": 4, "validate_every": 2, "batch": 4, "warmup": 0}
    if "checkpoint" in given:  # nothing is trained
        small = {"hidden": 6, "condition": 5}
    return build_options(loaded("ke").method, small | given, lm)  # type: ignore[return-value]


def editor(lm: Lm, prepared: Prepared | None = None, **given: Any) -> Editor:
    chosen = options(lm, **given)
    weights = {name: t.detach() for name, t in network_of(lm, chosen).state_dict().items()}
    return Editor(loaded("ke"), lm, chosen, prepared or Prepared(weights))


@pytest.fixture
def lm() -> Lm:
    return tiny_family("gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_update_fits_in_every_family(family: str) -> None:
    lm = tiny_family(family)
    tokens = len(lm.encode(TWO.text)) + len(lm.with_target(TWO.text, TWO.target_new)[1])
    for site, delta in editor(lm).compute(TWO).deltas.items():
        assert isinstance(delta, LowRank)
        assert delta.shape == tuple(lm.weight(site).shape)
        assert delta.left.shape[1] <= tokens


def test_scale_is_read_at_edit_time(lm: Lm) -> None:
    """Defect D19 of the ROME comparison: its factor was never read."""
    one, half = (editor(lm, scale=scale).compute(TWO) for scale in (1.0, 0.5))
    for site, delta in one.deltas.items():
        torch.testing.assert_close(half.deltas[site].dense(), 0.5 * delta.dense())


def test_padding_changes_nothing(lm: Lm) -> None:
    """In a batch of texts of several lengths each is read to its own end."""
    chosen = options(lm)
    network = network_of(lm, chosen)
    rows = [row_of(lm, r.text, r.target_new) for r in (ONE, TWO)]
    batch = lm.batch([[*p, *t] for p, t in rows])
    factors = edit_factors(lm, chosen.sites(lm), rows, 1)
    together = network(EditBatch(factors, batch.ids, batch.lengths))
    padded = batch.ids.clone()
    padded[0, batch.lengths[0] :] = 7
    other = network(EditBatch(factors, padded, batch.lengths))
    alone = editor(lm).compute(ONE)
    for site, change in together.items():
        assert torch.equal(change.left, other[site].left)
        torch.testing.assert_close(
            (change.left @ change.right)[0], alone.deltas[site].dense(), atol=1e-6, rtol=1e-4
        )


def test_the_text_decides(lm: Lm) -> None:
    """Another answer gives another change, also through the part without the gradient."""
    chosen = options(lm)
    network = network_of(lm, chosen)
    batch = lm.batch([[*p, *t] for p, t in (row_of(lm, r.text, r.target_new) for r in (ONE, TWO))])
    read = network.condition(batch.ids, batch.lengths)
    assert read.shape == (2, 5)
    assert (read[0] - read[1]).abs().max() > 1e-4


@pytest.mark.parametrize("own", [False, True])
def test_embeddings_are_trained_only_when_asked(lm: Lm, own: bool) -> None:
    network = network_of(lm, options(lm, train_embeddings=own))
    assert ("table" in dict(network.named_parameters())) == own
    assert ("table" in network.state_dict()) == own
    assert lm.model.get_input_embeddings().weight.data_ptr() != network.table.data_ptr()


def released(lm: Lm, chosen: KeOptions) -> dict[str, torch.Tensor]:
    """A file in the released layout, with a padding token more than the model has."""
    draw = torch.Generator().manual_seed(1)
    network = network_of(lm, chosen)
    H, h, c = lm.hidden_size, chosen.hidden, chosen.condition
    sizes = {
        "condition.embedding.weight": (len(network.table) + 1, H),
        "condition.linear._linear_layers.0.weight": (c, 2 * h),
        "condition.linear._linear_layers.0.bias": (c,),
    }
    for name, parameter in network.lstm.named_parameters():
        sizes[f"condition.lstm._module.{name}"] = tuple(parameter.shape)
    for layer in (1, 2, 3):
        for matrix in ("c_proj", "c_fc"):
            name = f"conditioners.transformer_h_{layer}_mlp_{matrix}_weight_conditioner"
            for i, (rows, columns) in ((0, (h, c)), (2, (2 * (H + 40) + 1, h))):
                sizes[f"{name}.conditioners.{i}.weight_g"] = (rows, 1)
                sizes[f"{name}.conditioners.{i}.weight_v"] = (rows, columns)
                sizes[f"{name}.conditioners.{i}.bias"] = (rows,)
    return {f"editor.{name}": torch.randn(size, generator=draw) for name, size in sizes.items()}


def test_released_files_are_taken_over(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "ke.pt"
    chosen = options(lm, preset="checkpoint", checkpoint=str(path))
    archive = released(lm, chosen)
    torch.save({"model": archive}, path)
    prepared = edit_prepare(lm, chosen, None, Checkpoint(tmp_path / "state"))
    network = network_of(lm, chosen)
    network.load_state_dict(dict(prepared.tensors))
    name = "editor.conditioners.transformer_h_2_mlp_c_fc_weight_conditioner.conditioners"
    v, g = archive[f"{name}.0.weight_v"], archive[f"{name}.0.weight_g"]
    number = [site.parameter for site in network.sites].index("transformer.h.2.mlp.c_fc.weight")
    weight = network.heads[number][0].weight  # type: ignore[index]
    torch.testing.assert_close(weight, g * v / v.norm(dim=1, keepdim=True))
    torch.testing.assert_close(network.table, archive["editor.condition.embedding.weight"][:-1])
    editor(lm, prepared, preset="checkpoint").compute(ONE)
    del archive["editor.condition.linear._linear_layers.0.bias"]
    torch.save(archive, path)
    with pytest.raises(ArtifactError, match=r"lacks project\.bias"):
        edit_prepare(lm, chosen, None, Checkpoint(tmp_path / "state"))


def test_a_released_file_tells_the_widths(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "ke.pt"
    torch.save({"model": released(lm, options(lm, preset="checkpoint"))}, path)
    chosen: Any = build_options(loaded("ke").method, {"checkpoint": str(path)}, lm)
    assert (chosen.hidden, chosen.condition, chosen.train_embeddings) == (6, 5, True)
    edit_prepare(lm, chosen, None, Checkpoint(tmp_path / "state"))
    plain: Any = build_options(loaded("ke").method, {}, lm)
    assert (plain.hidden, plain.condition, plain.train_embeddings) == (512, 768, False)


def test_the_key_of_a_preparation_holds_the_files_digest(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "ke.pt"
    keys = []
    for seed in (1, 2, 1):
        path.write_bytes(bytes([seed]))
        chosen = options(lm)
        keys.append(chosen.model_copy(update={"checkpoint": str(path)}).prepared_from())
    assert keys[0] == keys[2] != keys[1]
    assert str(path) not in str(keys)
    assert options(lm).prepared_from()["checkpoint"] is None
