"""ROME end to end on a tiny random GPT-2 in float64 (methods: invariants 7, 8, 10 to 13)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from lmedit import Editor, Lm, LowRank, Prepared, Request, build_options, load
from lmedit.tiny import tiny_lm
from lmedit.values.contexts import sample_contexts
from lmedit.values.rows import rows_of
from lmedit.values.search import optimise_values
from lmedit_rome.keys import select_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmedit import LoadedMethod, Update
    from lmedit_rome.keys import Keys

LAYER, D, V = 2, 64, 347
PROMPT, SUBJECT = "Nobody knew that {} is in the city of", "The tower"
REQUEST = Request(prompt=PROMPT, subject=SUBJECT, target_new="the sea")
AT_END = Request(prompt="by the old river was {}", subject=SUBJECT, target_new="the sea")
"""Here delta stands at the very place that predicts, so that an edit of a random model works."""
OTHER = "A boat came down the river and nobody in the city knew of The tower by night."
MODES = ("mixed", "mean", "prompt", "mean_denominator")
SHORT = ((3, 2), (5, 3))


@pytest.fixture
def lm() -> Lm:
    """With biases, as a forgotten one goes unseen at zero, and with logits worth optimising."""
    lm = tiny_lm(2)
    draw = torch.Generator().manual_seed(7)
    for name, parameter in lm.model.named_parameters():
        if name.endswith("bias"):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw).double()
    lm.model.transformer.ln_f.weight.data *= 3
    return lm


@pytest.fixture(scope="module")
def rome() -> LoadedMethod:
    return load("rome")


@pytest.fixture(scope="module")
def cholesky() -> Tensor:
    """The factor of a C far from a multiple of I."""
    A = torch.randn(D, D, generator=torch.Generator().manual_seed(0)).double()
    return torch.linalg.cholesky(A @ A.T / D + 0.1 * torch.eye(D))


@pytest.fixture
def editor(lm: Lm, rome: LoadedMethod, cholesky: Tensor) -> Callable[..., Editor]:
    def build(model: Lm = lm, **given: Any) -> Editor:
        options = build_options(rome.method, {"layer": LAYER, "prefixes": SHORT} | given, model)
        return Editor(rome, model, options, Prepared({"cholesky": cholesky}))

    return build


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def low_rank(update: Update) -> tuple[Tensor, Tensor]:
    """Lambda (H,) and u (D,) of an update."""
    (delta,) = update.deltas.values()
    assert isinstance(delta, LowRank)
    return delta.left.squeeze(1), delta.right.squeeze(0)


def at_mlp_out(lm: Lm, ids: list[int], layer: int = LAYER) -> tuple[Tensor, Tensor]:
    """What goes into the edited module (T, D) and comes out of it (T, H), without padding."""
    seen: list[tuple[Tensor, Tensor]] = []
    module = lm.model.transformer.h[layer].mlp.c_proj
    handle = module.register_forward_hook(lambda _, x, out: seen.append((x[0][0], out[0])))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0]


def at_subject(lm: Lm, template: str = "{}", layer: int = LAYER) -> tuple[Tensor, Tensor]:
    """Key (D,) and output (H,) at the subject's last token in a context."""
    ids, index = lm.subject_last(PROMPT, SUBJECT, template)
    keys, outs = at_mlp_out(lm, ids, layer)
    return keys[index], outs[index]


def templates_of(editor: Editor) -> list[str]:
    options: Any = editor.options
    return sample_contexts(editor.lm, options)


def means(editor: Editor) -> tuple[Tensor, Tensor]:
    """Mean key (D,) and mean output (H,) over the contexts."""
    pairs = [at_subject(editor.lm, template) for template in templates_of(editor)]
    keys, outs = zip(*pairs, strict=True)
    return torch.stack(keys).mean(0), torch.stack(outs).mean(0)


def output_at(lm: Lm, key: Tensor) -> Tensor:
    """W k + b of the model as it is now."""
    bias = lm.model.transformer.h[LAYER].mlp.c_proj.bias
    return lm.weight(lm.mlp_out(LAYER)) @ key + bias.detach()


def v_star(editor: Editor) -> Tensor:
    """The value the edit aims at, from the optimiser itself."""
    lm, options = editor.lm, cast("Any", editor.options)
    rows = rows_of(lm, REQUEST, templates_of(editor), options)
    return optimise_values(lm, LAYER, [rows], [at_subject(lm)[1]], options)[0].v_star


def target_log_p(lm: Lm, text: str = REQUEST.text, target: str = "the sea") -> Tensor:
    """Log-probability (nats) of each token of *target* after *text*."""
    ids, new = lm.encode(text), lm.encode(" " + target)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids + new])).logits[0]
    log_p = logits[len(ids) - 1 : -1].log_softmax(-1)
    return log_p[range(len(new)), new]


# --- which key the edit is exact at (7, 8)


@pytest.mark.parametrize(("mode", "at_mean"), [("mixed", 0), ("prompt", 0), ("mean", 1)])
def test_edit_is_exact_at_the_key_of_its_mode(
    editor: Callable[..., Editor], mode: str, at_mean: bool
) -> None:
    edit = editor(key_mode=mode)
    bare, mean = at_subject(edit.lm)[0], means(edit)[0]
    v, (here, elsewhere) = v_star(edit), (mean, bare) if at_mean else (bare, mean)
    with edit.applied(edit.compute(REQUEST)):
        close(output_at(edit.lm, here), v)
        assert (output_at(edit.lm, elsewhere) - v).norm() > 1e-3 * v.norm()


def test_mixed_keys_give_the_stated_value_at_the_mean_key(editor: Callable[..., Editor]) -> None:
    """W' k_mean + b = W k_mean + b + (u.k_mean)/(u.k_bare) (v* - y_bare)."""
    edit = editor()
    (bare, bare_out), (mean, mean_out) = at_subject(edit.lm), means(edit)
    v, update = v_star(edit), edit.compute(REQUEST)
    _, u = low_rank(update)
    expected = mean_out + (u @ mean) / (u @ bare) * (v - bare_out)
    with edit.applied(update):
        close(output_at(edit.lm, mean), expected)


def test_mean_denominator_moves_the_mean_key_by_delta(editor: Callable[..., Editor]) -> None:
    edit = editor(key_mode="mean_denominator")
    bare_out, (mean, mean_out) = at_subject(edit.lm)[1], means(edit)
    v = v_star(edit)
    with edit.applied(edit.compute(REQUEST)):
        close(output_at(edit.lm, mean), mean_out + v - bare_out)


@pytest.mark.parametrize("mode", MODES)
def test_direction_is_c_inverse_times_the_modes_key(
    editor: Callable[..., Editor], cholesky: Tensor, mode: str
) -> None:
    edit = editor(key_mode=mode)
    key = at_subject(edit.lm)[0] if mode == "prompt" else means(edit)[0]
    solved = torch.linalg.solve(cholesky @ cholesky.T, key)
    close(low_rank(edit.compute(REQUEST))[1], solved / solved.norm())


def test_preset_r_rome_is_exact_at_the_mean_key(editor: Callable[..., Editor]) -> None:
    edit = editor(preset="r-rome")
    mean, v = means(edit)[0], v_star(edit)
    with edit.applied(edit.compute(REQUEST)):
        close(output_at(edit.lm, mean), v)


def test_all_key_modes_agree_on_the_bare_prompt_alone(editor: Callable[..., Editor]) -> None:
    deltas = []
    for mode in MODES:
        big_lambda, u = low_rank(editor(key_mode=mode, prefixes=[]).compute(REQUEST))
        deltas.append(torch.outer(big_lambda, u))
    assert deltas[0].norm() > 1e-3
    for delta in deltas[1:]:
        close(delta, deltas[0])


def test_key_modes_differ_with_contexts(editor: Callable[..., Editor]) -> None:
    norms = [editor(key_mode=m).compute(REQUEST).notes["insertion_norm"] for m in MODES]
    assert len({round(norm, 6) for norm in norms}) == len(MODES)


def test_without_covariance_u_is_the_mean_key(lm: Lm, rome: LoadedMethod) -> None:
    given = {"layer": LAYER, "prefixes": SHORT, "covariance": False}
    edit = Editor(rome, lm, build_options(rome.method, given, lm), Prepared())
    mean = means(edit)[0]
    close(low_rank(edit.compute(REQUEST))[1], mean / mean.norm())


# --- what an applied edit changes, and taking it back (10, 11)


def test_applied_edit_puts_v_star_at_the_subject_of_the_bare_prompt(
    editor: Callable[..., Editor],
) -> None:
    """Seen in a forward pass of the edited model, not by the formula."""
    edit = editor()
    v, update, before = v_star(edit), edit.compute(REQUEST), at_subject(edit.lm)[1]
    with edit.applied(update):
        after = at_subject(edit.lm)[1]
    close(after, v)
    assert (after - before).norm().item() == pytest.approx(update.notes["delta_norm"], rel=1e-9)


def test_blocks_below_the_edited_one_are_untouched(editor: Callable[..., Editor]) -> None:
    edit = editor()
    ids = torch.tensor([edit.lm.encode(OTHER)])

    def states() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return edit.lm.model(input_ids=ids, output_hidden_states=True).hidden_states

    before = states()
    with edit.applied(edit.compute(REQUEST)):
        after = states()
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [layer <= LAYER for layer in range(5)]  # [0] is what block 0 is given


def test_every_token_of_any_text_is_moved_along_lambda(editor: Callable[..., Editor]) -> None:
    """By Lambda (u . k_token): an edit is not confined to its subject."""
    edit = editor()
    update = edit.compute(REQUEST)
    big_lambda, u = low_rank(update)
    ids = edit.lm.encode(OTHER)
    keys, before = at_mlp_out(edit.lm, ids)
    with edit.applied(update):
        after = at_mlp_out(edit.lm, ids)[1]
    close(after - before, torch.outer(keys @ u, big_lambda))
    assert (after - before).norm(dim=1).min() > 1e-6


def test_only_the_located_matrix_changes(editor: Callable[..., Editor]) -> None:
    edit = editor()
    before = copy.deepcopy(edit.lm.model.state_dict())
    with edit.applied(edit.compute(REQUEST)):
        changed = [
            name
            for name, tensor in edit.lm.model.state_dict().items()
            if not torch.equal(tensor, before[name])
        ]
    assert changed == [f"transformer.h.{LAYER}.mlp.c_proj.weight"]


def test_revert_is_bitwise_where_subtraction_is_not(editor: Callable[..., Editor]) -> None:
    edit = editor()
    lm, update = edit.lm, edit.compute(REQUEST)
    before = lm.weights_digest()
    with edit.applied(update):
        assert lm.weights_digest() != before
    assert lm.weights_digest() == before
    for site, delta in update.deltas.items():
        lm.add(site, delta.dense())
        lm.add(site, -delta.dense())
    assert lm.weights_digest() != before


# --- the value's optimiser (12)


def test_a_single_step_gives_no_update(editor: Callable[..., Editor]) -> None:
    """The last pass is never followed by an update."""
    update = editor(steps=1).compute(REQUEST)
    assert update.notes["steps"] == 0
    assert update.notes["delta_norm"] == 0
    assert low_rank(update)[0].abs().max() < 1e-12


@pytest.mark.parametrize("given", [{}, {"decay_kind": "adam"}, {"kl_reduction": "mean"}])
def test_the_first_loss_is_the_targets_alone(
    editor: Callable[..., Editor], given: dict[str, Any]
) -> None:
    """At delta = 0 drift and decay are 0; the target's is the mean over contexts and tokens."""
    edit = editor(**given, kl_factor=50.0, decay=50.0)
    templates = templates_of(edit)
    assert len(templates) == 6
    losses = [-target_log_p(edit.lm, t.replace("{}", REQUEST.text)).mean() for t in templates]
    update = edit.compute(REQUEST)
    assert update.notes["loss_first"] == pytest.approx(sum(losses).item() / 6, rel=1e-9)


def log_p_with(editor: Editor, ids: list[int], at: int, delta: Tensor) -> Tensor:
    """Log-probabilities (T, V) of one text, with *delta* added to the MLP output at one place."""
    model, options = editor.lm.model, cast("Any", editor.options)

    def shift(_: Any, __: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :at], out[:, at : at + 1] + delta, out[:, at + 1 :]], 1)

    handle = model.transformer.h[options.layer].mlp.c_proj.register_forward_hook(shift)
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    handle.remove()
    return logits.log_softmax(-1)


def loss_with(editor: Editor, delta: Tensor) -> Tensor:
    """Equation 4 written out, one text at a time: target, drift, and decay in the loss."""
    lm, options = editor.lm, cast("Any", editor.options)
    new = lm.encode(f" {REQUEST.target_new}")
    target = torch.zeros((), dtype=torch.float64)
    for template in templates_of(editor):
        ids, at = lm.subject_last(PROMPT, SUBJECT, template)
        log_p = log_p_with(editor, ids + new, at, delta)[len(ids) - 1 : -1]
        target = target - log_p[range(len(new)), new].mean() / len(templates_of(editor))
    ids, at = lm.subject_last("{} is a", SUBJECT)
    where = at if options.kl_position == "subject_last" else -1
    now = log_p_with(editor, ids, at, delta)[where]
    first = log_p_with(editor, ids, at, torch.zeros_like(delta))[where].detach()
    drift = (now.exp() * (now - first)).sum() / (V if options.kl_reduction == "mean" else 1)
    penalty = delta.norm() / at_subject(lm, layer=options.layer)[1].norm() ** 2
    in_loss = options.decay if options.decay_kind == "loss" else 0.0
    return target + options.kl_factor * drift + in_loss * penalty


def delta_by_hand(editor: Editor, updates: int) -> Tensor:
    """delta (H,) after *updates* of Adam on `loss_with`, clamped after each."""
    options: Any = editor.options
    delta = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    l2 = options.decay if options.decay_kind == "adam" else 0.0
    adam = torch.optim.Adam([delta], lr=options.learning_rate, weight_decay=l2)
    longest = options.clamp * at_subject(editor.lm, layer=options.layer)[1].norm()
    for _ in range(updates):
        adam.zero_grad()
        loss_with(editor, delta).backward()
        adam.step()
        delta.data *= min(1.0, float(longest / delta.detach().norm()))
    return delta.detach()


@pytest.mark.parametrize(
    "given",
    [
        {"decay": 3.0, "kl_factor": 2.0},
        {"decay": 3.0, "kl_factor": 2.0, "decay_kind": "adam", "kl_position": "prompt_last"},
        {"decay": 0.0, "kl_factor": 1e4, "kl_position": "prompt_last", "kl_reduction": "mean"},
        {"clamp": 0.2},
        {"layer": 0},
        {"layer": 1, "decay_kind": "adam"},
    ],
)
def test_delta_and_the_losses_are_those_of_equation_4(
    editor: Callable[..., Editor], given: dict[str, Any]
) -> None:
    edit = editor(prefixes=[[4, 1]], steps=5, **given)
    layer = given.get("layer", LAYER)
    delta, before = delta_by_hand(edit, 4), at_subject(edit.lm, layer=layer)[1]
    update = edit.compute(REQUEST)
    with edit.applied(update):
        close(at_subject(edit.lm, layer=layer)[1] - before, delta, 1e-8)
    last = loss_with(edit, delta).item()
    assert update.notes["loss_last"] == pytest.approx(last, rel=1e-8)


@pytest.mark.parametrize("clamp", [0.05, 0.5, 4.0])
def test_delta_is_never_longer_than_the_clamp(editor: Callable[..., Editor], clamp: float) -> None:
    notes = editor(clamp=clamp, steps=6).compute(REQUEST).notes
    assert 0 < notes["delta_norm"] <= clamp * notes["v0_norm"] * (1 + 1e-12)


def test_without_a_clamp_delta_may_be_longer(editor: Callable[..., Editor]) -> None:
    notes = editor(clamp=None, steps=6).compute(REQUEST).notes
    cut = editor(clamp=0.1, steps=6).compute(REQUEST).notes
    assert notes["delta_norm"] > 2 * cut["delta_norm"]


def test_lambda_is_never_longer_than_insertion_max(editor: Callable[..., Editor]) -> None:
    free, u = low_rank(editor().compute(REQUEST))
    cut, same_u = low_rank(editor(insertion_max=0.01).compute(REQUEST))
    assert free.norm() > 0.01
    close(cut, free * 0.01 / free.norm())
    assert torch.equal(u, same_u)


def test_no_parameter_gets_a_gradient(editor: Callable[..., Editor]) -> None:
    edit = editor()
    edit.lm.model.requires_grad_(True)
    edit.compute(REQUEST)
    assert [n for n, p in edit.lm.model.named_parameters() if p.grad is not None] == []
    assert all(p.requires_grad for p in edit.lm.model.parameters())


def test_optimising_stops_below_the_stop_loss(editor: Callable[..., Editor]) -> None:
    """And without an update more: one step fewer ends above it."""
    notes = editor(stop_loss=6.0).compute(AT_END).notes
    assert notes["loss_last"] < 6.0 < notes["loss_first"]
    assert 0 < notes["steps"] < 19
    shorter = editor(stop_loss=6.0, steps=notes["steps"]).compute(AT_END).notes
    assert shorter["steps"] == notes["steps"] - 1
    assert shorter["loss_last"] >= 6.0


def test_all_passes_but_the_last_are_followed_by_an_update(
    editor: Callable[..., Editor],
) -> None:
    assert editor(stop_loss=-1.0).compute(REQUEST).notes["steps"] == 19


def test_drift_keeps_what_follows_the_essence_prompt(editor: Callable[..., Editor]) -> None:
    """A heavy drift term holds back the change of what follows the subject there."""
    drifts = []
    for factor in (0.0, 100.0):
        edit = editor(kl_factor=factor, decay=0.0)
        ids = edit.lm.encode(SUBJECT)
        before = edit.lm.logits(edit.lm.batch([ids]))[0, -1].log_softmax(-1)
        with edit.applied(edit.compute(AT_END)):
            after = edit.lm.logits(edit.lm.batch([ids]))[0, -1].log_softmax(-1)
        drifts.append((after.exp() * (after - before)).sum().item())
    assert drifts[1] < 0.5 * drifts[0]


def test_decay_by_adam_differs_from_decay_in_the_loss(editor: Callable[..., Editor]) -> None:
    norms = {
        kind: editor(decay_kind=kind, decay=0.5).compute(REQUEST).notes["delta_norm"]
        for kind in ("loss", "adam")
    }
    plain = editor(decay=0.0).compute(REQUEST).notes["delta_norm"]
    assert len({round(norm, 9) for norm in (*norms.values(), plain)}) == 3


# --- what the edit is for


@pytest.mark.parametrize("target", ["the sea", "old tower", "the"])
def test_the_target_becomes_more_probable(editor: Callable[..., Editor], target: str) -> None:
    edit = editor()
    request = AT_END.model_copy(update={"target_new": target})
    before = target_log_p(edit.lm, request.text, target)
    update = edit.compute(request)
    with edit.applied(update):
        after = target_log_p(edit.lm, request.text, target)
    assert update.notes["loss_last"] < update.notes["loss_first"] - 0.5
    assert after.sum() > before.sum() + 2


def test_first_target_token_alone_is_what_is_optimised(editor: Callable[..., Editor]) -> None:
    """ "the sea" by its first token is the same edit as "the" by all of its tokens."""
    first = editor(target_tokens="first").compute(REQUEST)
    the = editor().compute(REQUEST.model_copy(update={"target_new": "the"}))
    whole = editor().compute(REQUEST)
    assert torch.equal(low_rank(first)[0], low_rank(the)[0])
    assert not torch.equal(low_rank(first)[0], low_rank(whole)[0])


def test_bare_value_contexts_leave_the_key_contexts(editor: Callable[..., Editor]) -> None:
    edit = editor(value_contexts="bare")
    update = edit.compute(REQUEST)
    expected = -target_log_p(edit.lm).mean().item()
    assert update.notes["loss_first"] == pytest.approx(expected, rel=1e-9)
    assert torch.equal(low_rank(update)[1], low_rank(editor().compute(REQUEST))[1])


def test_keys_are_those_of_passes_without_padding(editor: Callable[..., Editor]) -> None:
    edit = editor()
    templates = templates_of(edit)
    options: Any = edit.options
    keys: Keys = select_keys(edit.lm, LAYER, REQUEST, templates, options)
    (bare, bare_out), (mean, mean_out) = at_subject(edit.lm), means(edit)
    close(keys.bare, bare)
    close(keys.bare_out, bare_out)
    close(keys.mean, mean)
    close(keys.mean_out, mean_out)


@pytest.mark.parametrize("preset", ["paper", "2022-02"])
def test_the_key_of_paper_and_first_release_is_that_of_the_subject_alone(
    editor: Callable[..., Editor], preset: str
) -> None:
    """k(x_j + s), equation 3: the text ends at the subject, and the prompt is not in it."""
    edit = editor(preset=preset, prefixes=SHORT, layer=LAYER)
    request = REQUEST.model_copy(update={"prompt": "In the morning {} is in the city of"})
    options: Any = edit.options
    templates = templates_of(edit)
    found = select_keys(edit.lm, LAYER, request, templates, options)
    rows = [edit.lm.encode(template.replace("{}", SUBJECT)) for template in templates]
    expected = [at_mlp_out(edit.lm, ids) for ids in rows]
    close(found.mean, torch.stack([keys[-1] for keys, _ in expected]).mean(0))
    close(found.mean_out, torch.stack([outs[-1] for _, outs in expected]).mean(0))
    ids, at = edit.lm.subject_last(request.prompt, SUBJECT)
    keys, outs = at_mlp_out(edit.lm, ids)
    close(found.bare, keys[at])
    close(found.bare_out, outs[at])
    with_prompt = editor(preset=preset, prefixes=SHORT, layer=LAYER, key_text="prompt")
    code: Any = with_prompt.options
    assert not torch.allclose(
        select_keys(edit.lm, LAYER, request, templates, code).mean, found.mean
    )
    assert not torch.equal(
        low_rank(edit.compute(request))[1], low_rank(with_prompt.compute(request))[1]
    )


@pytest.mark.parametrize(("preset", "updates"), [("2022-02", 20), ("code", 19), ("paper", 19)])
def test_the_first_release_updates_after_the_last_pass_too(
    editor: Callable[..., Editor], preset: str, updates: int
) -> None:
    edit = editor(preset=preset, prefixes=SHORT, stop_loss=-1.0, layer=LAYER)
    assert edit.compute(REQUEST).notes["steps"] == updates


def test_the_last_update_is_that_of_one_pass_more(editor: Callable[..., Editor]) -> None:
    """n passes with the last update are n + 1 passes without it."""
    given = {"stop_loss": -1.0, "prefixes": SHORT}
    last = editor(steps=4, last_update=True, **given).compute(REQUEST)
    more = editor(steps=5, **given).compute(REQUEST)
    assert last.notes["steps"] == more.notes["steps"] == 4
    for one, other in zip(low_rank(last), low_rank(more), strict=True):
        close(one, other)


def test_location_names_the_layer_and_the_subjects_last_token(
    editor: Callable[..., Editor],
) -> None:
    location = editor().locate(REQUEST)
    (site,) = location.sites
    assert (site.parameter, site.transposed) == (f"transformer.h.{LAYER}.mlp.c_proj.weight", True)
    evidence = location.evidence
    assert evidence["tokens"][evidence["subject's last"]] == " tower"
    assert (evidence["layer"], evidence["layer from"]) == (LAYER, "given")


# --- storage layout (13)


def with_linear_layers(lm: Lm) -> Lm:
    """The same model with `Linear` in the place of every block's `Conv1D` mlp.c_proj."""
    model = copy.deepcopy(lm.model)
    for block in model.transformer.h:
        old = block.mlp.c_proj
        new = torch.nn.Linear(*old.weight.shape, dtype=torch.float64)
        new.weight.data, new.bias.data = old.weight.data.T.contiguous(), old.bias.data.clone()
        block.mlp.c_proj = new
    return Lm(model.requires_grad_(False), lm.tokenizer, name="linear")


def test_conv1d_and_linear_models_are_edited_alike(editor: Callable[..., Editor]) -> None:
    logits, transposed = [], []
    for edit in (editor(), editor(with_linear_layers(editor().lm))):
        batch = edit.lm.batch([edit.lm.encode(text) for text in (REQUEST.text, OTHER)])
        plain = edit.lm.logits(batch).detach()
        update = edit.compute(REQUEST)
        with edit.applied(update), torch.no_grad():
            logits.append(edit.lm.logits(batch))
        transposed.append(next(iter(update.deltas)).transposed)
        assert (logits[-1] - plain).abs().max() > 0.01
    assert transposed == [True, False]
    close(logits[0], logits[1], 1e-8)
