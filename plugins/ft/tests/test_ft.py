"""FT and FT-L end to end on tiny random models in float64."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmedit import Dense, Editor, Lm, Prepared, Request, build_options, load
from lmedit.errors import OptionError
from lmedit.tiny import byte_tokenizer, tiny_lm
from lmedit.trace import changed
from lmedit_ft.equations import changed_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmedit import Update

LAYER = 1
ONE = Request(prompt="{} is in the city of", subject="The tower", target_new="the")
TWO = ONE.model_copy(update={"target_new": "the sea"})
OTHER = "A boat came down the river and nobody in the city knew of The tower by night."


@pytest.fixture
def lm() -> Lm:
    """With logits wide enough for a loss below 1e-2."""
    lm = tiny_lm(5)
    lm.model.transformer.ln_f.weight.data *= 12
    return lm


@pytest.fixture
def editor(lm: Lm) -> Callable[..., Editor]:
    def build(method: str = "ft", model: Lm = lm, **given: Any) -> Editor:
        loaded = loaded_method(method)
        released = {"learning_rate": 5e-4} | ({"epsilon": 5e-4} if method == "ft-l" else {})
        options = build_options(loaded.method, {"layer": LAYER} | released | given, model)
        return Editor(loaded, model, options, Prepared())

    return build


@pytest.fixture(scope="module")
def llama() -> Lm:
    """A family whose MLP has no biases, and whose matrices are stored (d_out, d_in)."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).double()
    return Lm(model.requires_grad_(False), tokenizer, name="llama")


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def ids_of(lm: Lm, request: Request) -> tuple[list[int], list[int]]:
    return lm.encode(request.text), lm.encode(f" {request.target_new}")


def loss_at_prompt_end(model: Any, prompt: list[int], target: list[int]) -> Tensor:
    """All tokens of the target are read at the prompt's last position."""
    log_p = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    return -sum(log_p[token] for token in target) / len(target)


def loss_teacher_forced(model: Any, prompt: list[int], target: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    at = len(prompt) - 1
    return -sum(logits[at + i, token] for i, token in enumerate(target)) / len(target)


loaded_method = cache(load)
LOSSES = {"prompt_last": loss_at_prompt_end, "target_new": loss_teacher_forced}


def values(update: Update) -> dict[str, Tensor]:
    """The dense changes by the last part of the parameter's name."""
    found = {}
    for site, delta in update.deltas.items():
        assert isinstance(delta, Dense)
        found[site.parameter.rpartition(".")[2]] = delta.values
    return found


def trained_directly(
    lm: Lm, request: Request, objective: str, names: list[str], epsilon: float | None = None
) -> dict[str, Tensor]:
    """25 steps of Adam on the parameters of a copy of the real model; their changes."""
    model = copy.deepcopy(lm.model)
    start = {name: model.get_parameter(name).detach().clone() for name in names}
    trained = [model.get_parameter(name).requires_grad_(True) for name in names]
    optimiser = torch.optim.Adam(trained, lr=5e-4)
    for _ in range(25):
        optimiser.zero_grad()
        LOSSES[objective](model, *ids_of(lm, request)).backward()
        optimiser.step()
        for parameter, old in zip(trained, start.values(), strict=True):
            if epsilon is not None:
                parameter.data = parameter.data.clamp(old - epsilon, old + epsilon)
    return {name: model.get_parameter(name).detach() - start[name] for name in names}


@pytest.mark.parametrize(
    ("method", "objective", "epsilon", "layer"),
    [
        ("ft", "prompt_last", None, 1),
        ("ft", "target_new", None, 1),
        ("ft-l", "prompt_last", 2e-3, 0),
        ("ft-l", "target_new", 2e-3, 3),
    ],
)
def test_update_is_that_of_adam_on_the_models_own_parameters(
    editor: Callable[..., Editor],
    lm: Lm,
    method: str,
    objective: str,
    epsilon: float | None,
    layer: int,
) -> None:
    base = f"transformer.h.{layer}.mlp.c_proj."
    names = [f"{base}weight", f"{base}bias"]
    expected = trained_directly(lm, TWO, objective, names, epsilon)
    edit = editor(method, objective=objective, epsilon=epsilon, layer=layer)
    got = values(edit.compute(TWO))
    assert got["weight"].abs().max() > 1e-3
    close(got["weight"], expected[names[0]].T, 1e-9)  # Conv1D stores (d_in, d_out)
    close(got["bias"], expected[names[1]][:, None], 1e-9)


def test_update_is_that_of_adam_on_a_model_without_biases(
    editor: Callable[..., Editor], llama: Lm
) -> None:
    name = f"model.layers.{LAYER}.mlp.down_proj.weight"
    expected = trained_directly(llama, TWO, "prompt_last", [name])
    update = editor(model=llama).compute(TWO)
    assert [site.parameter for site in update.deltas] == [name]
    close(values(update)["weight"], expected[name], 1e-9)


@pytest.mark.parametrize("method", ["ft", "ft-l"])
def test_models_without_biases_are_edited(
    editor: Callable[..., Editor], llama: Lm, method: str
) -> None:
    edit = editor(method, model=llama)
    update = edit.compute(TWO)
    before = loss_at_prompt_end(llama.model, *ids_of(llama, TWO))
    with edit.applied(update):
        assert loss_at_prompt_end(llama.model, *ids_of(llama, TWO)) < before


def test_delta_in_a_hook_equals_delta_in_the_weights(editor: Callable[..., Editor]) -> None:
    """What was trained is what is applied: on any text, at every position."""
    edit = editor(learning_rate=0.05)
    lm, update = edit.lm, edit.compute(TWO)
    deltas = values(update)
    batch = lm.batch([lm.encode(TWO.text), lm.encode(OTHER)])
    module = lm.mlp_out_module(LAYER)
    plain = lm.logits(batch)
    with changed(module, lambda x, out: changed_output(out, x, deltas["weight"], deltas["bias"])):
        hooked = lm.logits(batch)
    with edit.applied(update):
        applied = lm.logits(batch)
    close(hooked, applied)
    assert (applied - plain).abs().max() > 0.1


@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
def test_first_loss_is_the_models_own(editor: Callable[..., Editor], objective: str) -> None:
    edit = editor(objective=objective)
    expected = LOSSES[objective](edit.lm.model, *ids_of(edit.lm, TWO)).item()
    assert edit.compute(TWO).notes["loss_first"] == pytest.approx(expected, rel=1e-10)


def test_objectives_differ_for_targets_of_several_tokens_alone(
    editor: Callable[..., Editor],
) -> None:
    last, forced = editor(objective="prompt_last"), editor(objective="target_new")
    assert len(ids_of(last.lm, ONE)[1]) == 1
    assert len(ids_of(last.lm, TWO)[1]) == 2
    for name, value in values(last.compute(ONE)).items():
        assert torch.equal(value, values(forced.compute(ONE))[name])
    for name, value in values(last.compute(TWO)).items():
        assert (value - values(forced.compute(TWO))[name]).abs().max() > 1e-4


def test_ft_m_preset_is_teacher_forced(editor: Callable[..., Editor]) -> None:
    preset, forced = editor(preset="ft-m"), editor(objective="target_new")
    assert torch.equal(values(preset.compute(TWO))["weight"], values(forced.compute(TWO))["weight"])


@pytest.mark.parametrize("epsilon", [1e-4, 2e-3, 1e-1])
def test_ft_l_changes_no_entry_by_more_than_epsilon(
    editor: Callable[..., Editor], epsilon: float
) -> None:
    for value in values(editor("ft-l", epsilon=epsilon).compute(TWO)).values():
        assert 0 < value.abs().max() <= epsilon


def test_ft_l_reaches_its_bound_where_ft_exceeds_it(editor: Callable[..., Editor]) -> None:
    free = values(editor("ft").compute(TWO))["weight"]
    bounded = values(editor("ft-l").compute(TWO))["weight"]
    assert free.abs().max() > 5e-4
    assert bounded.abs().max().item() == 5e-4


def test_ft_l_needs_no_more_than_a_bound_to_differ(editor: Callable[..., Editor]) -> None:
    free, loose = editor("ft").compute(TWO), editor("ft-l", epsilon=10.0).compute(TWO)
    assert torch.equal(values(free)["weight"], values(loose)["weight"])


@pytest.mark.parametrize(("rate", "stops"), [(5e-4, False), (1e-2, True)])
def test_ft_ends_below_the_stop_loss_or_after_25_steps(
    editor: Callable[..., Editor], rate: float, stops: bool
) -> None:
    notes = editor(learning_rate=rate).compute(ONE).notes
    assert (notes["loss_last"] < 1e-2) == stops
    assert notes["steps"] < 25 if stops else notes["steps"] == 25


def test_an_early_stop_leaves_the_last_loss_in_the_edited_model(
    editor: Callable[..., Editor],
) -> None:
    edit = editor(learning_rate=0.01)
    update = edit.compute(ONE)
    with edit.applied(update):
        loss = loss_at_prompt_end(edit.lm.model, *ids_of(edit.lm, ONE)).item()
    assert loss < 1e-2
    assert loss == pytest.approx(update.notes["loss_last"], rel=1e-8)


def test_nothing_is_trained_where_the_loss_is_small_already(
    editor: Callable[..., Editor],
) -> None:
    for value in values(editor(stop_loss=1e9).compute(TWO)).values():
        assert not value.any()


def test_steps_in_the_notes_are_updates(editor: Callable[..., Editor]) -> None:
    """As the option `steps` counts them ("updates at most"), and as ROME's notes do."""
    assert editor(steps=3).compute(TWO).notes["steps"] == 3
    assert editor(stop_loss=1e9).compute(TWO).notes["steps"] == 0


@pytest.mark.parametrize("steps", [1, 4])
def test_steps_bounds_the_change(editor: Callable[..., Editor], steps: int) -> None:
    """Adam moves an entry by about the learning rate at each step, by as much at the first."""
    largest = values(editor(steps=steps).compute(TWO))["weight"].abs().max().item()
    assert largest == pytest.approx(steps * 5e-4, rel=0.1)


def test_the_loss_falls_and_the_target_becomes_more_probable(
    editor: Callable[..., Editor],
) -> None:
    edit = editor(preset="ft-m")
    before = loss_teacher_forced(edit.lm.model, *ids_of(edit.lm, TWO))
    update = edit.compute(TWO)
    with edit.applied(update):
        after = loss_teacher_forced(edit.lm.model, *ids_of(edit.lm, TWO))
    assert update.notes["loss_last"] < update.notes["loss_first"]
    assert after < before


def test_without_bias_the_matrix_alone_is_trained(editor: Callable[..., Editor]) -> None:
    update = editor(bias=False).compute(TWO)
    assert [site.parameter for site in update.deltas] == [
        f"transformer.h.{LAYER}.mlp.c_proj.weight"
    ]
    assert set(values(editor().compute(TWO))) == {"weight", "bias"}


def test_no_parameter_gets_a_gradient(editor: Callable[..., Editor]) -> None:
    edit = editor()
    edit.lm.model.requires_grad_(True)
    update = edit.compute(TWO)
    assert [n for n, p in edit.lm.model.named_parameters() if p.grad is not None] == []
    assert not any(value.requires_grad for value in values(update).values())


def test_an_epsilon_of_zero_is_refused(editor: Callable[..., Editor]) -> None:
    with pytest.raises(OptionError, match="ft-l: epsilon"):
        editor("ft-l", epsilon="0")
