"""What KN adds is more of the new answer, whatever the sign of the activation and the norm."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lmedit import Editor, LowRank, Prepared, Request, build_options, load
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm, tiny_model
from lmedit.trace import captured
from lmedit_kn.equations import (
    before_norm,
    before_rest,
    covariance,
    exchange,
    level,
    shorten,
)
from lmedit_kn.exchanging import SHARES, exchange_answer, weaken
from lmedit_kn.neurons import by_layer, scaled
from lmedit_kn.probe import probe_neurons
from lmedit_kn.stream import mlps_at_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit import Lm
    from lmedit_kn.options import KnOptions

ONE = Request(prompt="{} is in the city of", subject="The tower", target_new="the")
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3")
POST_NORM = ("olmo2", "gemma2", "gemma3_text")
loaded = cache(load)


def family(name: str) -> Lm:
    """A tiny model whose last norm keeps all signs, so that more of an answer's row is more."""
    if name == "olmo2":
        sizes = {k: v for k, v in FAMILIES["llama"][1].items() if k != "head_dim"}
        lm = tiny_model("Olmo2Config", sizes)
    else:
        lm = tiny_family(name)
    # Gemma's norms multiply by one plus their weight.
    for module_name, parameter in lm.model.named_parameters():
        if parameter.dim() == 1 and "norm" in module_name:
            extra = 0.0 if "gemma" in name else 1.0
            parameter.data = extra + 0.2 * parameter.data.tanh()
    return lm


def options(**given: Any) -> KnOptions:
    return build_options(loaded("kn").method, given)  # type: ignore[return-value]


def editor(lm: Lm, **given: Any) -> Editor:
    return Editor(loaded("kn"), lm, build_options(loaded("kn").method, given, lm), Prepared())


def exchange_of(lm: Lm) -> tuple[Tensor, int, int]:
    """d (H,), and the tokens of the old and of the new answer."""
    old = int(lm.next_probabilities(ONE.text).argmax())
    new = lm.with_target(ONE.text, ONE.target_new)[1][0]
    E = lm.embeddings("output")
    return exchange(E[old], E[[new]], 0.05, 0.05), old, new


def last_logits(lm: Lm) -> Tensor:
    return lm.logits(lm.batch([lm.encode(ONE.text)]))[0, -1]


def last_state(lm: Lm, layer: int) -> Tensor:
    with captured(lm.block(layer)) as box:
        last_logits(lm)
    return box.output[0, -1]


def by_sign(lm: Lm, layer: int) -> dict[float, list[tuple[int, int]]]:
    """The three neurons of *layer* with the largest activations of each sign."""
    key = mlps_at_prompt(lm, ONE.text, [layer])[layer].key
    return {
        sign: [(layer, int(place)) for place in (sign * key).topk(3).indices] for sign in (1, -1)
    }


@pytest.mark.parametrize("name", [*GATED, *POST_NORM])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_new_rises_and_old_falls_at_neurons_of_either_sign(name: str, sign: float) -> None:
    lm = family(name)
    layer = lm.n_layers - 1
    neurons = by_sign(lm, layer)[sign]
    key = mlps_at_prompt(lm, ONE.text, [layer])[layer].key
    assert all(sign * key[place] > 0 for _, place in neurons)
    d, old, new = exchange_of(lm)
    before = last_logits(lm)
    changes = {}
    for adapted in (True, False):
        deltas, _, _ = exchange_answer(lm, ONE.text, neurons, d, options(adapted=adapted))
        with editor(lm).applied(as_update(deltas)):
            changes[adapted] = last_logits(lm) - before
    assert changes[True][new] > 0 > changes[True][old]
    if sign < 0 and name in GATED:  # what the released code does there is the opposite
        assert changes[False][new] < 0 < changes[False][old]


def as_update(deltas: Any) -> Any:
    from lmedit import Update

    return Update(deltas)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_turned_activations_turn_the_change_and_nothing_else(name: str) -> None:
    """Up-projection and value of each neuron times -1: the same model, all activations turned."""
    lm, turned = family(name), family(name)
    for layer in range(lm.n_layers):
        width = lm.weight(lm.mlp_out(layer)).shape[1]
        up = turned.mlp_matrices(layer)[-2]
        rows = turned.model.get_parameter(up.parameter).data
        rows[-width:] *= -1
        turned.model.get_parameter(turned.mlp_out(layer).parameter).data *= -1
    torch.testing.assert_close(last_logits(turned), last_logits(lm))
    ours, theirs = editor(lm).compute(ONE), editor(turned).compute(ONE)
    assert ours.deltas.keys() == theirs.deltas.keys()
    for site, delta in ours.deltas.items():
        torch.testing.assert_close(theirs.deltas[site].dense(), -delta.dense())
    with editor(lm).applied(ours), editor(turned).applied(theirs):
        torch.testing.assert_close(last_logits(turned), last_logits(lm))


@pytest.mark.parametrize("name", [*GATED, "gpt2", "opt", "falcon"])
def test_the_stream_gains_the_size_of_the_activations_times_d(name: str) -> None:
    lm = family(name)
    layer = lm.n_layers - 1
    found = by_sign(lm, layer)
    neurons = [*found[1.0], *found[-1.0]]
    d, *_ = exchange_of(lm)
    before = last_state(lm, layer)
    deltas, notes, _ = exchange_answer(lm, ONE.text, neurons, d, options())
    with editor(lm).applied(as_update(deltas)):
        gained = last_state(lm, layer) - before
    key = mlps_at_prompt(lm, ONE.text, [layer])[layer].key
    size = sum(abs(float(key[place])) for _, place in neurons)
    torch.testing.assert_close(gained, size * d, rtol=1e-5, atol=1e-7)
    assert notes["negative_activations"] == sum(bool(key[place] < 0) for _, place in neurons)
    share = float(size * d.norm() / before.norm())
    assert notes["largest_share_of_stream"] == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("name", POST_NORM)
def test_behind_a_norm_the_stream_gains_d_too(name: str) -> None:
    """All that can be gained: the part of d along the norm's output cannot."""
    lm = family(name)
    layer = lm.n_layers - 1
    neurons = by_sign(lm, layer)[-1.0]
    d, *_ = exchange_of(lm)
    d = 0.01 * d
    before = last_state(lm, layer)
    mlp = mlps_at_prompt(lm, ONE.text, [layer])[layer]
    wanted = mlp.size([place for _, place in neurons]) * d
    deltas, notes, _ = exchange_answer(lm, ONE.text, neurons, d, options())
    with editor(lm).applied(as_update(deltas)):
        gained = last_state(lm, layer) - before
    out = mlp.out / mlp.out.norm()
    assert mlp.norm is not None
    gain = mlp.norm(torch.ones_like(mlp.out))
    reachable = wanted - gain * out * (out @ (wanted / gain))
    torch.testing.assert_close(gained, reachable, rtol=0.05, atol=float(0.02 * wanted.norm()))
    assert notes["behind_norm_cosine"] == pytest.approx(
        float(cosine_similarity(gained, wanted, dim=0)), abs=1e-4
    )
    assert notes["behind_norm_length"] == pytest.approx(
        float(gained.norm() / wanted.norm()), abs=1e-4
    )
    plain, _, _ = exchange_answer(lm, ONE.text, neurons, d, options(adapted=False))
    with editor(lm).applied(as_update(plain)):
        blind = last_state(lm, layer) - before
    assert (gained - wanted).norm() < 0.5 * (blind - wanted).norm()


@pytest.mark.parametrize("name", POST_NORM)
@pytest.mark.parametrize("subject", ["The tower", "A small boat"])
def test_the_gain_behind_norms_is_measured_against_the_papers_and_told(
    name: str, subject: str
) -> None:
    """In each layer alone: what the stream gains has the direction that KN adds, or none."""
    lm, asked = family(name), ONE.model_copy(update={"subject": subject})
    made = Editor(loaded("kn"), lm, options(enough=None), Prepared())
    found = made.locate(asked)
    update = made.compute(asked)
    old = int(lm.next_probabilities(asked.text).argmax())
    new = lm.with_target(asked.text, asked.target_new)[1]
    E = lm.embeddings("output")
    d = level(exchange(E[old], E[new], 2.0, 2.0), covariance(E))
    measured = []
    for layer, of in by_layer(found.found["neurons"]).items():
        site, mlp = lm.mlp_out(layer), mlps_at_prompt(lm, asked.text, [layer])[layer]
        if site not in update.deltas:
            continue
        wanted = mlp.size(of) * mlp.limit_length(d, of, 0.5)
        with made.applied(as_update({site: update.deltas[site]})):
            gained = _stream_behind(lm, asked, layer) - mlp.stream
        measured.append(
            (
                float(cosine_similarity(gained, wanted, dim=0)),
                float(gained.norm() / wanted.norm()),
            )
        )
    cosine, length = min(c for c, _ in measured), min(s for _, s in measured)
    assert cosine > 0
    assert update.notes["behind_norm_cosine"] == pytest.approx(cosine, abs=2e-2)
    assert update.notes["behind_norm_length"] == pytest.approx(length, abs=2e-2)
    (told,) = update.notes["remarks"]
    assert f"a cosine of at least {update.notes['behind_norm_cosine']:.2f}" in told


def _stream_behind(lm: Lm, asked: Request, layer: int) -> Tensor:
    with captured(lm.block(layer)) as box:
        lm.logits(lm.batch([lm.encode(asked.text)]))
    state: Tensor = box.output[0, -1]
    return state


def post_norm_of_the_sum() -> Lm:
    """A block ends with a norm of stream and MLP together, as in BART and the first GPT."""
    sizes = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 128, "hidden_size": 16}
    lm = tiny_model("OpenAIGPTConfig", sizes)
    for name, parameter in lm.model.named_parameters():
        if parameter.dim() == 1 and name.split(".")[-2].startswith("ln_"):
            parameter.data = float(name.endswith("weight")) + 0.2 * parameter.data.tanh()
    return lm


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_behind_a_norm_of_the_sum_the_stream_gains_what_it_can(sign: float) -> None:
    """The mean and the length are the norm's own; all the rest of d arrives."""
    lm, layer = post_norm_of_the_sum(), 1
    neurons = by_sign(lm, layer)[sign]
    norm = lm.block(layer).get_submodule("ln_2")
    with captured(norm) as box:
        last_logits(lm)
    gain = norm.get_parameter("weight")
    place = box.input[0, -1]
    unit = (place - place.mean()) / (place - place.mean()).norm()
    fixed = torch.linalg.qr(torch.stack([1 / gain, unit / gain], dim=1)).Q  # (H, 2)
    d = 0.01 * torch.randn(16, generator=torch.Generator().manual_seed(3)).double()
    d -= fixed @ (fixed.T @ d)
    before = last_state(lm, layer)
    deltas, notes, _ = exchange_answer(lm, ONE.text, neurons, d, options())
    with editor(lm).applied(as_update(deltas)):
        gained = last_state(lm, layer) - before
    wanted = mlps_at_prompt(lm, ONE.text, [layer])[layer].size([n for _, n in neurons]) * d
    assert float((gained - wanted).norm()) < 0.05 * float(wanted.norm())
    assert notes["smallest_reachable_share"] > 0.98
    _, notes, _ = exchange_answer(lm, ONE.text, neurons, 0.01 * fixed[:, 0], options())
    assert notes["smallest_reachable_share"] < 0.02


def test_a_change_that_the_rest_of_a_block_bends_is_shortened() -> None:
    lm, layer = post_norm_of_the_sum(), 1
    neurons = by_sign(lm, layer)[1.0]
    d, *_ = exchange_of(lm)
    before = last_state(lm, layer)
    deltas, _, aim = exchange_answer(lm, ONE.text, neurons, 1000 * d, options(limit=8.0))
    assert aim is not None
    with editor(lm).applied(as_update(deltas)):
        gained = last_state(lm, layer) - before
    assert float(cosine_similarity(gained, aim.gain, dim=0)) >= 0.85
    assert float(aim.gain.norm()) < 4.0 * float(before.norm())


def test_before_the_rest_of_a_block() -> None:
    draw = torch.Generator().manual_seed(0)
    J = torch.randn(8, 8, generator=draw).double()
    d = torch.randn(8, generator=draw).double()
    torch.testing.assert_close(J @ before_rest(d, J, ridge=1e-6), d)
    J[3] = 0.0  # nothing arrives there
    arrived = J @ before_rest(d, J, ridge=1e-6)
    torch.testing.assert_close(arrived, torch.where(torch.arange(8) == 3, 0.0, d))


def test_without_a_norm_nothing_is_said_of_one() -> None:
    lm = family("llama")
    _, notes, _ = exchange_answer(lm, ONE.text, by_sign(lm, 1)[1.0], exchange_of(lm)[0], options())
    assert set(notes) == {"negative_activations", "largest_share_of_stream"}


def test_a_limit_shortens_what_a_layer_adds() -> None:
    lm = family("llama")
    layer = lm.n_layers - 1
    neurons = by_sign(lm, layer)[-1.0]
    d = 100 * exchange_of(lm)[0]
    before = last_state(lm, layer)
    deltas, notes, _ = exchange_answer(lm, ONE.text, neurons, d, options(limit=0.25))
    with editor(lm).applied(as_update(deltas)):
        gained = last_state(lm, layer) - before
    assert float(gained.norm()) == pytest.approx(0.25 * float(before.norm()), rel=1e-6)
    assert float(cosine_similarity(gained, d, dim=0)) == pytest.approx(1.0)
    assert notes["largest_share_of_stream"] == pytest.approx(0.25)
    free, _, _ = exchange_answer(lm, ONE.text, neurons, 1e-6 * d, options(limit=0.25))
    same, _, _ = exchange_answer(lm, ONE.text, neurons, 1e-6 * d, options(limit=None))
    for site, delta in free.items():
        assert torch.equal(delta.dense(), same[site].dense())


@pytest.mark.parametrize("name", ["llama", "mistral", "opt"])
def test_the_smallest_share_that_is_enough(name: str) -> None:
    lm = family(name)
    layer = lm.n_layers - 1
    d, _, new = exchange_of(lm)
    deltas, _, _ = exchange_answer(
        lm, ONE.text, [*by_sign(lm, layer)[1.0]], 400 * d, options(adapted=True, limit=None)
    )

    def probability(share: float) -> float:
        scaled_ = {s: LowRank(share * x.left, x.right) for s, x in deltas.items()}
        with editor(lm).applied(as_update(scaled_)):
            return float(last_logits(lm).float().softmax(-1)[new])

    found = {share: probability(share) for share in SHARES}
    enough = (probability(0) + max(found.values())) / 2
    first = next(share for share, p in found.items() if p >= enough)
    changes, share = weaken(lm, ONE.text, new, deltas, enough)
    assert share == pytest.approx(first, rel=1e-6)
    for site, delta in changes.items():
        torch.testing.assert_close(delta.dense(), share * deltas[site].dense())
    whole, share = weaken(lm, ONE.text, new, deltas, 0.999999)
    assert share == (1.0 if max(found.values()) < 0.999999 else share)
    assert all(torch.equal(whole[site].dense(), deltas[site].dense()) for site in deltas)


def test_presets_of_released_codes_add_without_a_sign() -> None:
    lm = tiny_lm(3)
    request = ONE.model_copy(update={"target_true": "river"})
    for preset in ("rome", "eleuther"):
        for delta in editor(lm, preset=preset).compute(request).deltas.values():
            assert isinstance(delta, LowRank)
            assert set(delta.right.unique().tolist()) == {0.0, 1.0}


def test_the_probe_doubles_neurons_where_they_meet_their_values() -> None:
    """Found by negative gates they would fall silent, were the gates doubled."""
    lm = family("llama")
    neurons = by_sign(lm, lm.n_layers - 1)[-1.0]
    answer = "the"
    found = [
        probe_neurons(lm, ONE, neurons, answer, options(site=site, frames=[]))
        for site in ("key", "pre_act")
    ]
    assert found[0] == found[1]
    with scaled(lm, neurons, 2.0):
        doubled = lm.next_probabilities(ONE.text)
    (token,) = lm.with_target(ONE.text, answer)[1]
    clean = lm.next_probabilities(ONE.text)[token]
    change = 100 * float(doubled[token] / clean - 1)
    assert found[0]["doubled, %"] == pytest.approx(change, abs=1e-3)


def test_the_formulas() -> None:
    assert shorten(torch.tensor([3.0, 4.0]), 1.0).tolist() == pytest.approx([0.6, 0.8])
    assert shorten(torch.tensor([3.0, 4.0]), 9.0).tolist() == [3.0, 4.0]
    assert shorten(torch.zeros(2), 1.0).tolist() == [0.0, 0.0]
    out, gain = torch.tensor([3.0, -4.0]).double(), torch.tensor([2.0, -0.5]).double()
    d = 1e-6 * torch.tensor([1.0, 2.0]).double()

    def norm(x: Tensor) -> Tensor:
        return gain * x / x.pow(2).mean().sqrt()

    gained = norm(out + before_norm(d, out, gain)) - norm(out)
    unit = out / out.norm()
    torch.testing.assert_close(gained, d - gain * unit * (unit @ (d / gain)), rtol=1e-4, atol=1e-11)
    assert before_norm(d, out, torch.tensor([1.0, 0.0]).double()).isfinite().all()
    assert by_layer([(1, 2), (0, 3), (1, 0)]) == {0: [3], 1: [0, 2]}


def test_what_most_embeddings_share_is_taken_out() -> None:
    """Rare and frequent words differ along one direction; the answers differ along others."""
    draw = torch.Generator().manual_seed(0)
    E = torch.randn(400, 32, generator=draw)
    E[:, 0] = 12 * torch.randn(400, generator=draw)
    old, new = int(E[:, 0].argmax()), int(E[:, 0].abs().argmin())
    d = exchange(E[old], E[[new]], 1.0, 1.0)
    found = level(d, covariance(E))
    assert float(found.norm()) == pytest.approx(float(d.norm()), rel=1e-5)
    gains_more = [int((E @ each > E[new] @ each).sum()) for each in (d, found)]
    assert gains_more[0] > 100  # every rare word
    assert gains_more[1] < 20
    assert abs(found[0] / d[0]) < 0.5
    C = torch.cov(E.T, correction=0)
    solved = torch.linalg.solve(C + C.trace() / 32 * torch.eye(32), d)
    assert float(cosine_similarity(found, solved, dim=0)) == pytest.approx(1.0, abs=1e-5)
    assert level(torch.zeros(32), covariance(E)).abs().max() == 0
