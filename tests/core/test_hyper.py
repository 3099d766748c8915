"""What hypernetwork editors share: factors, losses, edits in place, memory, the training loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lmedit.errors import ArtifactError, NotPreparedError
from lmedit.hyper import (
    EditBatch,
    Example,
    Examples,
    Hypernetwork,
    HyperOptions,
    LowRankBatch,
    edit_factors,
    examples_from,
    row_of,
    train,
    trained_on,
)
from lmedit.hyper.examples import apart_texts, example_of, front_of
from lmedit.hyper.frozen import FrozenModel
from lmedit.hyper.losses import all_right, edit_loss, locality_loss, share_unchanged
from lmedit.hyper.network import edited_rows
from lmedit.hyper.released import released_weights
from lmedit.hyper.training import _Trainer, curves, pick
from lmedit.metrics.contamination import fingerprint
from lmedit.storage.tensors import Checkpoint
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit import Lm, Site

ROWS = (
    ("The tower is in the city of", "the sea"),
    ("Nobody knew how old", "it"),
    ("A small boat came down", "the old river"),
)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def loss_of(
    lm: Lm, weights: dict[str, torch.Tensor], prompt: Sequence[int], target: Sequence[int]
) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *target]])
    logits = functional_call(lm.model, weights, (), {"input_ids": ids}).logits
    log_p = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return -log_p.gather(1, torch.tensor(target)[:, None]).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_multiply_out_to_the_gradient(family: str) -> None:
    lm = tiny_family(family, torch.float32)
    rows = [row_of(lm, *row) for row in ROWS]
    sites = [site for layer in (1, 2, 3) for site in lm.mlp_matrices(layer)]
    found = edit_factors(lm, sites, rows, 1)
    for i, (prompt, target) in enumerate(rows):
        weights = {
            site.parameter: lm.model.get_parameter(site.parameter).clone().requires_grad_()
            for site in sites
        }
        loss = loss_of(lm, weights, prompt, target)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for site, gradient in zip(sites, gradients, strict=True):
            oriented = gradient.T if site.transposed else gradient
            scale = float(oriented.abs().max())
            assert (found[site].dense()[i] - oriented).abs().max() <= 1e-4 * scale


def test_in_the_last_block_only_predicting_tokens_count() -> None:
    lm = tiny_lm()
    rows = [row_of(lm, *row) for row in ROWS]
    sites = [lm.mlp_out(2), lm.mlp_out(3)]
    found = edit_factors(lm, sites, rows, 2)
    for i, (prompt, target) in enumerate(rows):
        assert found[sites[0]].mask[i].sum() == len(prompt) + len(target) - 1
        assert found[sites[1]].mask[i].sum() == len(target)
        assert torch.linalg.matrix_rank(found[sites[1]].dense()[i]) <= len(target)


def test_matrices_are_found_by_structure() -> None:
    names = {
        family: [site.parameter.split(".", 3)[-1] for site in tiny_family(family).mlp_matrices(1)]
        for family in ("gpt2", "gptj", "llama", "opt", "phi3")
    }
    assert names == {
        "gpt2": ["mlp.c_fc.weight", "mlp.c_proj.weight"],
        "gptj": ["mlp.fc_in.weight", "mlp.fc_out.weight"],
        "llama": ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"],
        "opt": ["1.fc1.weight", "1.fc2.weight"],
        "phi3": ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
    }


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "opt", "bloom"])
def test_edited_rows_are_those_of_changed_weights(family: str) -> None:
    lm = tiny_family(family)
    draw = torch.Generator().manual_seed(0)
    rows = [lm.encode(text) for text, _ in ROWS]
    edit_of = torch.tensor([1, 0, 1])
    changes = {
        site: LowRankBatch(
            *(
                0.1 * torch.randn(2, *shape, generator=draw, dtype=torch.float64)
                for shape in ((lm.weight(site).shape[0], 3), (3, lm.weight(site).shape[1]))
            )
        )
        for site in lm.mlp_matrices(2)
    }
    before = lm.weights_digest()
    with edited_rows(lm, changes, edit_of):
        found = lm.logits(lm.batch(rows))
    assert lm.weights_digest() == before
    for i, row in enumerate(rows):
        kept = {site: lm.snapshot(site) for site in changes}
        for site, change in changes.items():
            lm.add(site, change.left[edit_of[i]] @ change.right[edit_of[i]])
        expected = lm.logits(lm.batch([row]))[0]
        close(found[i, : len(row)], expected)
        for site, values in kept.items():
            lm.restore(site, values)


def test_losses_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    tokens, edit_of = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    found = edit_loss(p.log(), tokens, edit_of, 2)
    expected = [-(math.log(0.5) + math.log(0.75)) / 2, -math.log(0.1)]
    assert found.tolist() == pytest.approx(expected)
    q = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    kl = locality_loss(p.log(), q.log(), edit_of, 2)
    by_row = [sum(0.5 * math.log(0.5 / v) for v in row.tolist()) for row in p]
    assert kl.tolist() == pytest.approx([(by_row[0] + by_row[1]) / 2, by_row[2]])
    assert locality_loss(p.log(), p.log(), edit_of, 2).abs().max() < 1e-7
    assert all_right(p.log(), torch.tensor([0, 1, 1]), edit_of, 2).tolist() == [1, 0]
    assert all_right(p.log(), torch.tensor([0, 0, 0]), edit_of, 2).tolist() == [0, 1]
    assert share_unchanged(p.log(), q.log(), edit_of, 2).tolist() == [0.5, 1]


def case(number: int, **changes: Any) -> Case:
    values: dict[str, Any] = {
        "id": str(number),
        "request": Request(
            prompt="{} is in the city of",
            subject=f"The tower {number}",
            target_new="the sea",
            target_true="the river",
        ),
        "paraphrases": (f"Nobody knew where the tower {number} was:", f"{number}: a tower in"),
        "neighbours": ("A small boat came down", "The old city is by", "A boat went to"),
        "relations": (Probe(prompt=f"The tower {number} was built in", answer="the morning"),),
    }
    return Case(**{**values, **changes})


CASES = [case(number) for number in range(60)]


def test_examples_are_split_by_fact_and_the_same_every_time() -> None:
    lm = tiny_lm()
    double = [*CASES, *(case(n, id=f"{n} again") for n in range(60))]
    found = examples_from(lm, double, 100, 0)
    assert found == examples_from(lm, double, 100, 0)
    assert found != examples_from(lm, double, 100, 1)
    assert len(found.training) + len(found.validation) == 100
    assert 10 <= len(found.validation) <= 12
    inner = {e.inner for e in found.training} & {e.inner for e in found.validation}
    assert not inner
    assert len(found.training[0].outer) == len(found.training[0].apart) == 3
    assert found.training[0].outer[0] == found.training[0].inner
    assert len(found.training[0].apart[0]) == 4


def test_what_stands_in_front_of_an_edit_stands_in_front_of_other_texts_too() -> None:
    fronted = case(1, paraphrases=("It rained. Nobody came! The tower 1 was in",))
    texts = [
        "A small boat came down the river",
        "The old city is by the river",
        "The tower 1 was built in the morning",
        "A boat went to the river",
    ]
    assert apart_texts(fronted) == texts
    lm = tiny_lm()
    bare, behind = example_of(lm, fronted).apart
    assert bare == tuple(tuple(lm.encode(text)) for text in texts)
    front = "It rained. Nobody came!"
    assert behind == tuple(tuple(lm.encode(f"{front} {text}")) for text in texts[:3])
    assert front_of("In 1990. the tower", "the tower") == "In 1990."
    assert front_of("Where the tower is", "the tower") == front_of("no", "the tower") == ""


def test_too_few_cases_are_refused() -> None:
    lone = [case(n, neighbours=(), relations=()) for n in range(60)]
    assert apart_texts(lone[0]) == []
    with pytest.raises(NotPreparedError, match="0 cases with neighbours"):
        examples_from(tiny_lm(), lone, 100, 0)


def test_a_fact_is_recognised_whatever_its_blanks_and_case() -> None:
    one = CASES[0].request
    other = one.model_copy(update={"prompt": "{}  IS in the city of", "target_new": "it"})
    assert fingerprint(one) == fingerprint(other) != fingerprint(CASES[1].request)


class Toy(Hypernetwork):
    """A step along the gradient and a constant, for each matrix; enough to learn something."""

    def __init__(self, lm: Lm, sites: Sequence[Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.rate = nn.Parameter(torch.full((len(sites),), 1e-3))
        self.bias = nn.ParameterList(
            nn.Parameter(torch.zeros(lm.weight(site).shape[0])) for site in sites
        )

    def forward(self, edits: EditBatch) -> dict[Site, LowRankBatch]:
        return {
            site: LowRankBatch(
                -rate * edits.factors[site].delta.mT + 0.01 * bias[:, None],
                edits.factors[site].x,
            )
            for site, rate, bias in zip(self.sites, self.rate, self.bias, strict=True)
        }


OPTIONS = HyperOptions(
    layers=(2, 3),
    steps=24,
    batch=4,
    learning_rate=0.3,
    validate_every=8,
    limit=60,
    weight_edit=1.0,
    weight_apart=0.1,
)


def trained(lm: Lm, folder: Path, options: HyperOptions = OPTIONS) -> Any:
    return train(
        lm,
        Toy(lm, options.sites(lm)),
        examples_from(lm, CASES, 60, 0),
        options,
        Checkpoint(folder / "state"),
    )


@pytest.fixture
def lm() -> Lm:
    return tiny_family("gpt2", torch.float32)


def test_training_lowers_the_loss_and_keeps_the_best(lm: Lm, tmp_path: Path) -> None:
    before = lm.weights_digest()
    prepared = trained(lm, tmp_path)
    curve = prepared.facts["curve"]
    assert [point["step"] for point in curve] == [0, 8, 16, 24]
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert prepared.facts["validation"]["loss"] == min(point["loss"] for point in curve)
    assert prepared.facts["recipe"]["learning_rate"] == 0.3
    assert lm.weights_digest() == before
    assert all(trained_on(prepared, c.request) for c in CASES)
    assert not trained_on(prepared, Request(prompt="{} is", subject="x", target_new="y"))
    losses, shares = curves(curve)
    assert losses.places == (0, 8, 16, 24)
    assert len(shares.series["success"]) == 4


@pytest.mark.parametrize("at_once", [1, 3])
def test_gradients_of_parts_add_up(lm: Lm, at_once: int) -> None:
    examples = examples_from(lm, CASES, 60, 0)
    found = []
    for size in (None, at_once):
        options = OPTIONS.model_copy(update={"at_once": size})
        trainer = _Trainer(lm, Toy(lm, options.sites(lm)), examples, options, None)
        loss = trainer._gradient(trainer._picks(0))
        found.append((loss, [p.grad for p in trainer.network.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        close(one, other, 1e-4)


def test_a_step_that_does_not_fit_is_taken_in_halves(
    lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = examples_from(lm, CASES, 60, 0)
    trainer = _Trainer(lm, Toy(lm, OPTIONS.sites(lm)), examples, OPTIONS, None)
    whole = trainer._gradient(trainer._picks(0))
    backward, sizes = _Trainer._backward, []

    def fits(self: _Trainer, picks: Any, share: float = 1.0) -> float:
        sizes.append(len(picks))
        if len(picks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self, picks, share)

    monkeypatch.setattr(_Trainer, "_backward", fits)
    assert trainer._gradient(trainer._picks(0)) == pytest.approx(whole, abs=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert trainer.at_once == 1


def test_the_base_may_be_in_half_precision(tmp_path: Path) -> None:
    half = tiny_family("gpt2", torch.bfloat16)
    prepared = trained(half, tmp_path, OPTIONS.model_copy(update={"steps": 8}))
    assert prepared.tensors["rate"].dtype == torch.float32
    assert len(prepared.facts["curve"]) == 2


class Killed(Exception):
    """What ends a training in the middle."""


@pytest.mark.parametrize("at", [3, 8, 17])
def test_killed_and_resumed_equals_undisturbed(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("lmedit.hyper.training.SAVE_SECONDS", 0.0)
    whole = trained(lm, tmp_path / "whole")
    advance = _Trainer.advance

    def dies(self: _Trainer) -> float:
        if self.run.step == at:
            raise Killed
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "advance", dies)
        with pytest.raises(Killed):
            trained(lm, tmp_path / "parts")
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "advance", lambda self: steps.append(0) or advance(self))
        parts = trained(lm, tmp_path / "parts")
    assert len(steps) == OPTIONS.steps - at
    assert parts.facts == whole.facts
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name])


def test_the_training_ends_where_nothing_gets_better(lm: Lm, tmp_path: Path) -> None:
    still = OPTIONS.model_copy(update={"learning_rate": 1e-30, "patience": 2, "steps": 200})
    facts = trained(lm, tmp_path, still).facts
    assert facts["steps"] == 16
    assert facts["validation"]["step"] == 0


def test_steps_without_a_finite_gradient_change_nothing(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = _Trainer._scores
    bad: set[int] = set()

    def broken(self: _Trainer, picks: Any) -> Any:
        found = scores(self, picks)
        if torch.is_grad_enabled() and self.run.step in bad:
            return (found[0] * float("nan"), *found[1:])
        return found

    monkeypatch.setattr(_Trainer, "_scores", broken)
    bad |= {1, 5}
    prepared = trained(lm, tmp_path / "some")
    assert prepared.facts["steps_skipped"] == 2
    assert all(bool(t.isfinite().all()) for t in prepared.tensors.values())
    bad |= set(range(100))
    with pytest.raises(NotPreparedError, match="not finite for 10 steps"):
        trained(lm, tmp_path / "all")


def test_what_is_remembered_is_what_would_be_worked_out(lm: Lm) -> None:
    examples = examples_from(lm, CASES, 60, 0).training
    sites = OPTIONS.sites(lm)
    kept, none = (FrozenModel(lm, sites, 2, size) for size in (1.0, 0.0))
    rows = [e.apart[0][0] for e in examples[:5]]
    where = torch.arange(5), torch.tensor([len(row) - 1 for row in rows])
    whole = lm.logits(lm.batch(rows))[where]
    for frozen in (kept, kept, none):
        close(frozen.logits(rows, where), whole)
        close(frozen.from_first(rows).logits_at(*where), whole)
        found = frozen.factors(examples[3:6])
        fresh = edit_factors(lm, sites, [e.inner for e in examples[3:6]], 2)
        for site in sites:
            close(found[site].dense(), fresh[site].dense())
    assert kept._known.values
    assert not none._known.values


def test_every_example_is_seen_once_in_a_pass(lm: Lm) -> None:
    examples = examples_from(lm, CASES, 60, 0)
    trainer = _Trainer(lm, Toy(lm, OPTIONS.sites(lm)), examples, OPTIONS, None)
    steps = len(examples.training) // OPTIONS.batch
    seen = [e.inner for step in range(steps) for e, *_ in trainer._picks(step)]
    assert len(seen) == len(set(seen)) == steps * OPTIONS.batch
    assert trainer._picks(1) == trainer._picks(1) != trainer._picks(1 + steps)


def test_an_example_alone_scores_as_in_a_batch(lm: Lm) -> None:
    """Examples of several lengths, targets of several tokens."""
    rows = [row_of(lm, *row) for row in ROWS]
    examples = tuple(Example(row, (row,), ((row[0],),)) for row in rows)
    trainer = _Trainer(lm, Toy(lm, OPTIONS.sites(lm)), Examples(examples, (), ()), OPTIONS, None)
    together = torch.stack(trainer._scores([pick(e, 0) for e in examples]))
    alone = torch.cat([torch.stack(trainer._scores([pick(e, 0)])) for e in examples], dim=1)
    close(together, alone, 1e-4)
    unedited = replace(examples[0])
    expected = loss_of(lm, {}, *unedited.inner)
    nothing = Toy(lm, OPTIONS.sites(lm))
    nothing.rate.data.zero_()
    trainer.network = nothing
    assert trainer._scores([pick(unedited, 0)])[0].item() == pytest.approx(
        float(expected), abs=1e-4
    )


def test_an_archive_that_grows_in_memory_is_refused(tmp_path: Path) -> None:
    import zipfile

    plain, packed = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"model": {"w": torch.zeros(1 << 20)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part.filename))
    assert packed.stat().st_size < 100_000
    with pytest.raises(ArtifactError, match="is compressed"):
        released_weights(str(packed))
    assert list(released_weights(str(plain))) == ["w"]


@pytest.mark.parametrize(
    "value", [3, [], {"model": 3}, {"model": {"w": torch.eye(3).to_sparse()}}, {"model": {}}]
)
def test_an_archive_without_plain_weights_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match=r"no weights|not a released"):
        released_weights(str(tmp_path / "a.pt"))
