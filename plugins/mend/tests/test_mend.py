"""MEND on tiny random models (invariants 19 to 24), and the released layout."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPTJConfig, LlamaConfig, Qwen2Config

import lmedit
from lmedit import Editor, Lm, LowRank, Prepared, Request, build_options, load
from lmedit.errors import ArtifactError, OptionError
from lmedit.hyper import EditBatch, edit_factors, row_of
from lmedit.pipeline import prepare
from lmedit.preparation import load_prepared, save_prepared
from lmedit.testing import Records
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm
from lmedit_mend import edit_prepare, network_of
from lmedit_mend.equations import EPSILON, layer, merge, normalise, step
from lmedit_mend.released import config_order

if TYPE_CHECKING:
    from lmedit_mend.options import MendOptions

loaded = cache(load)
ONE = Request(prompt="{} is in the city of", subject="The tower", target_new="the")
TWO = ONE.model_copy(update={"target_new": "the old sea"})
PLAIN = {"normalise": False, "edit_rate": 1e-2}


def options(lm: Lm, **given: Any) -> MendOptions:
    small = {"rank": 4, "steps": 6, "validate_every": 3, "batch": 4, "warmup": 0}
    if "checkpoint" in given:  # nothing is trained
        small = {"rank": 4}
    return build_options(loaded("mend").method, small | given, lm)  # type: ignore[return-value]


def primed(lm: Lm, chosen: MendOptions, *, awake: bool = False) -> Prepared:
    """An untrained network's weights; *awake*: with random numbers where it begins with zeros."""
    network = network_of(lm, chosen)
    rows = [row_of(lm, case.request.text, case.request.target_new) for case in Records()]
    network.prime(edit_factors(lm, chosen.sites(lm), rows, chosen.blocks[0]))
    draw = torch.Generator().manual_seed(5)
    if awake:
        for transform in network.transforms:
            for parameter in transform.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        network.alpha.data += 1e-3 * torch.randn(network.alpha.shape, generator=draw)
    return Prepared({name: t.detach() for name, t in network.state_dict().items()})


def editor(
    lm: Lm, prepared: Prepared | None = None, *, awake: bool = False, **given: Any
) -> Editor:
    chosen = options(lm, **given)
    return Editor(loaded("mend"), lm, chosen, prepared or primed(lm, chosen, awake=awake))


@pytest.fixture
def lm() -> Lm:
    return tiny_family("gpt2")


def nll(lm: Lm, request: Request) -> torch.Tensor:
    prompt, target = lm.with_target(request.text, request.target_new)
    logits = lm.logits(lm.batch([prompt + target]))[0, len(prompt) - 1 : -1]
    return -logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_and_plain_it_is_one_step_of_gradient_descent(family: str) -> None:
    """Invariants 19 and 24: in every family, whichever way round the matrix is stored."""
    lm = tiny_family(family)
    update = editor(lm, **PLAIN).compute(TWO)
    weights = [lm.model.get_parameter(site.parameter).requires_grad_() for site in update.deltas]
    gradients = torch.autograd.grad(nll(lm, TWO), weights)
    for (site, delta), gradient in zip(update.deltas.items(), gradients, strict=True):
        expected = -1e-2 * (gradient.T if site.transposed else gradient).float()
        assert (delta.dense() - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_small_step_lowers_the_loss_and_the_other_sign_raises_it(lm: Lm) -> None:
    """The factors point along the gradient: one sign descends, the other ascends."""
    before = float(nll(lm, TWO))
    after = {}
    for sign in (-1, 1):
        ed = editor(lm, normalise=False, edit_rate=1e-4, sign=sign)
        with ed.applied(ed.compute(TWO)):
            after[sign] = float(nll(lm, TWO))
    assert after[-1] < before < after[1]


def test_the_rank_is_that_of_the_tokens_that_count(lm: Lm) -> None:
    """Each token that the loss sees adds at most one to the rank."""
    prompt, target = lm.with_target(TWO.text, TWO.target_new)
    for site, delta in editor(lm, awake=True).compute(TWO).deltas.items():
        assert isinstance(delta, LowRank)
        most = len(target) if ".3." in site.parameter else len(prompt) + len(target) - 1
        assert torch.linalg.matrix_rank(delta.dense()) <= most


def test_an_edit_is_the_same_in_any_company_and_order(lm: Lm) -> None:
    """Edits do not see one another, and the statistics stand still."""
    ed = editor(lm, awake=True)
    first, _, again = (ed.compute(request) for request in (ONE, TWO, ONE))
    for site, delta in first.deltas.items():
        assert torch.equal(delta.dense(), again.deltas[site].dense())
    chosen = options(lm)
    network = network_of(lm, chosen)
    network.load_state_dict(dict(ed.prepared.tensors))
    statistics = copy.deepcopy(dict(network.named_buffers()))
    rows = [row_of(lm, r.text, r.target_new) for r in (ONE, TWO, ONE)]
    factors = edit_factors(lm, chosen.sites(lm), rows, 1)
    batch = lm.batch([[*p, *t] for p, t in rows])
    changes = network(EditBatch(factors, batch.ids, batch.lengths))
    for site, change in changes.items():
        dense = change.left @ change.right
        torch.testing.assert_close(dense[0], dense[2])
        torch.testing.assert_close(dense[0], first.deltas[site].dense(), atol=1e-5, rtol=1e-4)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, statistics[name])


def test_statistics_merge_as_row_by_row() -> None:
    draw = torch.Generator().manual_seed(0)
    z = 3 + torch.randn(50, 4, generator=draw, dtype=torch.float64)
    state = (torch.zeros(()).double(), torch.zeros(4).double(), torch.zeros(4).double())
    for part in (z[:1], z[1:20], z[20:]):
        state = merge(*state, part)
    count, mean, squares = state
    assert count == 50
    torch.testing.assert_close(mean, z.mean(0))
    torch.testing.assert_close(squares / 49, z.var(0))
    rows = normalise(z, mean, squares / 49)
    torch.testing.assert_close(rows, (z - z.mean(0)) / (z.std(0) + EPSILON))


def test_a_layer_is_the_identity_at_the_start_and_learns_there() -> None:
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    U, V, b = torch.zeros(6, 2, requires_grad=True), torch.ones(2, 6), torch.zeros(6)
    one, zero = torch.ones(6), torch.zeros(6)
    for rectified in (True, False):
        out = layer(z, U, V, b, one, zero, rectified=rectified)
        assert torch.equal(out, z)
        (gradient,) = torch.autograd.grad(out.sum(), [U])
        assert gradient.abs().min() > 0
    out = layer(z, U, V, b - 1, 2 * one, zero + 0.5, rectified=False)
    assert torch.allclose(out, z - 1.5)
    assert torch.equal(layer(z, U, V, b - 1, one, zero, rectified=True), z)
    left, right = step(torch.tensor(0.5), -1, z[None, :, :2], z[None, :, 2:])
    torch.testing.assert_close((left @ right)[0], -0.5 * z[:, 2:].T @ z[:, :2])


def test_step_lengths_learn_at_a_rate_of_their_own(lm: Lm, tmp_path: Path) -> None:
    """Defect B3 of the released trainer: their rate had no effect."""
    from lmedit import Checkpoint

    rates = {}
    for rate in (1e-30, 1e-2):
        chosen = options(lm, edit_rate_rate=rate)
        found = edit_prepare(lm, chosen, Records(), Checkpoint(tmp_path / str(rate)))
        rates[rate] = found.tensors["alpha"]
        assert found.facts["curve"][0]["step"] == 0
    assert torch.equal(rates[1e-30], torch.full((6,), 1e-4))
    assert (rates[1e-2] - 1e-4).abs().min() > 1e-4


def released(lm: Lm, chosen: MendOptions, old: bool = False) -> dict[str, Any]:
    """A file in the released layout: inputs first, the output matrix of a block first."""
    draw = torch.Generator().manual_seed(1)
    H, D, r = lm.hidden_size, 40, chosen.rank
    archive: dict[str, Any] = {"model_config": GPT2Config()}
    for d_in, d_out in ((H, D), (D, H)):
        of_shape = f"{'gtn' if old else 'mend'}.({d_in}, {d_out})."
        for i in range(2):
            sizes = {
                "u": (d_in + d_out, r),
                "v": (r, d_in + d_out),
                "bias": (d_in + d_out,),
                "mode_scale.weight": (3, d_in + d_out),
                "mode_shift.weight": (3, d_in + d_out),
            }
            for name, size in sizes.items():
                archive[f"{of_shape}mlp.layers.{i}.{name}"] = torch.randn(size, generator=draw)
        for name, size in (("u", d_in), ("v", d_out)):
            archive[f"{of_shape}{name}_mean"] = torch.randn(size, generator=draw)
            archive[f"{of_shape}{name}_s"] = 1 + torch.rand(size, generator=draw)
            archive[f"{of_shape}{name}_std"] = torch.ones(size)
        archive[f"{of_shape}k"] = torch.tensor([100])
    archive["edit_lrs"] = torch.arange(1.0, 7.0) / 1000
    return archive


@pytest.mark.parametrize("old", [False, True])
def test_released_files_are_taken_over(lm: Lm, tmp_path: Path, old: bool) -> None:
    from lmedit import Checkpoint

    path = tmp_path / "mend.pt"
    chosen = options(lm, preset="checkpoint", rank=4, checkpoint=str(path))
    archive = released(lm, chosen, old)
    torch.save({"model": archive, "step": 5}, path)
    assert (chosen.sign, chosen.last_rectified) == (1, True)
    prepared = edit_prepare(lm, chosen, None, Checkpoint(tmp_path / "state"))
    # In a GPT-2 block the released order is c_proj, c_fc; ours is the other way round (B2).
    assert config_order(network_of(lm, chosen)) == [1, 0, 3, 2, 5, 4]
    assert prepared.tensors["alpha"].tolist() == pytest.approx(
        [0.002, 0.001, 0.004, 0.003, 0.006, 0.005]
    )
    update = editor(lm, prepared, preset="checkpoint", rank=4).compute(ONE)
    prompt, target = row_of(lm, ONE.text, ONE.target_new)
    factors = edit_factors(lm, chosen.sites(lm), [(prompt, target)], 1)
    site = lm.mlp_out(3)
    z = torch.cat([factors[site].x, factors[site].delta], -1)[0][factors[site].mask[0]]
    of_shape = f"{'gtn' if old else 'mend'}.(40, 16)."
    part = {k.removeprefix(of_shape): v for k, v in archive.items() if k.startswith(of_shape)}
    mean = torch.cat([part["u_mean"], part["v_mean"]])
    std = (torch.cat([part["u_s"], part["v_s"]]) / 99).sqrt()
    z = (z - mean) / (std + 1e-7)
    for i in range(2):
        h = z @ part[f"mlp.layers.{i}.v"].T @ part[f"mlp.layers.{i}.u"].T
        h = part[f"mlp.layers.{i}.mode_scale.weight"][2] * (h + part[f"mlp.layers.{i}.bias"])
        z = z + (h + part[f"mlp.layers.{i}.mode_shift.weight"][2]).clamp(min=0)
    expected = 0.005 * z[:, 40:].T @ z[:, :40]
    torch.testing.assert_close(update.deltas[site].dense(), expected, atol=1e-4, rtol=1e-4)


def test_a_released_file_tells_rank_sign_and_last_layer(lm: Lm, tmp_path: Path) -> None:
    """So `-o checkpoint FILE` alone is the update of the checkpoint preset and its rank."""
    from lmedit import Checkpoint

    path = tmp_path / "mend.pt"
    torch.save({"model": released(lm, options(lm, rank=5))}, path)
    method = loaded("mend").method
    alone: Any = build_options(method, {"checkpoint": str(path)}, lm)
    assert (alone.rank, alone.hidden, alone.sign, alone.last_rectified) == (5, 1, 1, True)
    given = {"preset": "checkpoint", "rank": 5, "hidden": 1, "checkpoint": str(path)}
    right: Any = build_options(method, given, lm)
    updates = []
    for chosen in (alone, right):
        prepared = edit_prepare(lm, chosen, None, Checkpoint(tmp_path / "state"))
        updates.append(Editor(loaded("mend"), lm, chosen, prepared).compute(ONE))
    for site, delta in updates[0].deltas.items():
        assert torch.equal(delta.dense(), updates[1].deltas[site].dense())
        assert delta.dense().abs().max() > 0
    other: Any = build_options(method, {"checkpoint": str(path), "sign": -1}, lm)
    assert (other.sign, other.rank) == (-1, 5)  # what is given wins
    plain: Any = build_options(method, {}, lm)
    assert (plain.rank, plain.sign, plain.last_rectified) == (128, -1, False)


def test_another_file_of_the_same_name_is_another_editor(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    path, method = tmp_path / "mend.pt", loaded("mend")

    def edit(file: Path) -> torch.Tensor:
        chosen = build_options(method.method, {"checkpoint": str(file)}, lm)
        update = prepare(method, lm, chosen, None).compute(ONE)
        return update.deltas[lm.mlp_out(3)].dense()

    archive = released(lm, options(lm))
    torch.save({"model": archive}, path)
    first = edit(path)
    torch.save({"model": archive | {"edit_lrs": 2 * archive["edit_lrs"]}}, path)
    torch.testing.assert_close(edit(path), 2 * first)
    torch.save({"model": archive}, path)
    assert torch.equal(edit(path), first)
    moved = path.rename(tmp_path / "moved.pt")
    before = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert torch.equal(edit(moved), first)
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == before


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda a: a.pop("edit_lrs"), "lacks alpha"),
        (
            lambda a: a.update({"mend.(16, 40).mlp.layers.0.u": torch.zeros(56, 5)}),
            "is \\(56, 5\\)",
        ),
        (
            lambda a: [a.pop(k) for k in list(a) if "(16, 40)" in k],
            "no editor for matrices \\(16, 40",
        ),
    ],
)
def test_released_files_that_do_not_fit_are_refused(
    lm: Lm, tmp_path: Path, change: Any, culprit: str
) -> None:
    path = tmp_path / "mend.pt"
    chosen = options(lm, checkpoint=str(path))
    archive = released(lm, chosen)
    change(archive)
    torch.save(archive, path)
    with pytest.raises(ArtifactError, match=culprit):
        edit_prepare(lm, chosen, None, None)  # type: ignore[arg-type]


def test_archives_run_nothing(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "mend.pt"
    torch.save({"model": {"mend.x": nn.Linear(2, 2)}}, path)
    with pytest.raises(ArtifactError, match="is not a released editor"):
        edit_prepare(lm, options(lm, checkpoint=str(path)), None, None)  # type: ignore[arg-type]
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="is not a released editor"):
        edit_prepare(lm, options(lm, checkpoint=str(path)), None, None)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="no file"):
        edit_prepare(lm, options(lm, checkpoint="gone.pt"), None, None)  # type: ignore[arg-type]


def test_an_editor_is_bound_to_its_base(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "editor.safetensors"
    prepared = primed(lm, options(lm))
    save_prepared(path, Prepared(prepared.tensors, {"base": "one"}), lm.digest)
    assert load_prepared(path, lm).tensors.keys() == prepared.tensors.keys()
    other = tiny_family("gpt2", seed=1)
    with pytest.raises(ArtifactError, match=f"for base one .*but {other.name} is"):
        load_prepared(path, other)


def test_llamas_three_matrices_are_edited(lm: Lm) -> None:
    llama = tiny_family("llama")
    update = editor(llama, awake=True).compute(ONE)
    assert len(update.deltas) == 9
    assert {tuple(delta.shape) for delta in update.deltas.values()} == {(16, 40), (40, 16)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_base_may_be_in_half_precision(dtype: torch.dtype) -> None:
    ed = editor(tiny_family("gpt2", dtype), awake=True)
    update = ed.compute(TWO)
    assert all(delta.tensors()["left"].dtype == torch.float32 for delta in update.deltas.values())
    with ed.applied(update):
        pass


def test_wrong_options_are_refused(lm: Lm) -> None:
    for name, value in (("sign", 2), ("rank", 0), ("limit", 3)):
        with pytest.raises(OptionError, match=name):
            options(lm, **{name: value})


@pytest.mark.parametrize("config", [LlamaConfig(), GPTJConfig(), Qwen2Config()])
def test_archives_with_any_configuration_are_read(
    lm: Lm, tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lmedit.editor` with a checkpoint needs no cases."""
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mend.pt"
    torch.save({"model": released(lm, options(lm, rank=4)) | {"model_config": config}}, path)
    made = lmedit.editor("mend", lm, checkpoint=str(path))
    assert made.prepared.facts["published"] == str(path)
    assert all(d.dense().isfinite().all() for d in made.compute(ONE).deltas.values())


def test_no_other_class_of_an_archive_is_loaded(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "mend.pt"
    torch.save({"model": {"u": torch.ones(1)}, "state": PosixPath("/")}, path)
    with pytest.raises(ArtifactError, match="is not a released editor"):
        build_options(loaded("mend").method, {"checkpoint": str(path)}, lm)


def test_the_order_of_step_lengths_follows_the_configuration(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "mend.pt"
    torch.save({"model": released(lm, options(lm, rank=4))}, path)
    given = {"checkpoint": str(path), "checkpoint_order": "input_first"}
    chosen: Any = build_options(loaded("mend").method, given, lm)
    assert config_order(network_of(lm, chosen)) == [0, 1, 2, 3, 4, 5]
    distilled = tiny_lm(n_layer=6)
    auto: Any = build_options(loaded("mend").method, {"checkpoint": str(path)}, distilled)
    assert auto.checkpoint_order == "input_first"
    trained: Any = build_options(loaded("mend").method, {}, lm)
    assert "checkpoint_order" not in trained.prepared_from()
