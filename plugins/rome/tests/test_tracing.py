"""Causal tracing equals the straightforward computation in every family."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Editor, Prepared, Request, build_options, load
from lmedit.actions.facts import average_tokens
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.tiny import FAMILIES, tiny_family
from lmedit.trace import captured, changed
from lmedit.types import Pooled
from lmedit_rome import tracing
from lmedit_rome.effects import buckets, describe_trace, effects, notebook_rows, random_span
from lmedit_rome.restoring import (
    ATTENTION,
    KINDS,
    MLP,
    SEVERED,
    STATE,
    Group,
    TraceSettings,
    modules_of,
)
from lmedit_rome.tracing import (
    subject_noise,
    trace,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from lmedit import Lm

FACT = Request(
    prompt="In the morning {} is in the city of", subject="The old tower", target_new="x"
)
SETUP = TraceSettings(noise=1.0, samples=3, window=2, seed=4)


class Plain:
    """Every restored run is a whole run of every row, with hooks."""

    def __init__(self, lm: Lm, setup: TraceSettings) -> None:
        self.lm, self.setup = lm, setup
        self.ids, self.start, self.end = lm.subject_span(FACT.prompt, FACT.subject)
        draw = torch.Generator().manual_seed(setup.seed)
        size = (setup.samples, self.end - self.start, lm.hidden_size)
        self.noise = setup.noise * torch.randn(size, generator=draw)
        self.outputs: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as stack:
            boxes = {
                (kind, layer): stack.enter_context(captured(module))
                for kind in KINDS
                for layer, module in enumerate(self.modules(kind))
                if module is not None
            }
            self.token = int(self.p([])[0].argmax())
        shape = (1 + setup.samples, len(self.ids), -1)
        self.outputs = {key: box.output.reshape(shape) for key, box in boxes.items()}

    def modules(self, kind: str) -> Iterable[Any]:
        blocks = [self.lm.block(layer) for layer in range(self.lm.n_layers)]
        return blocks if kind == STATE else modules_of(self.lm, kind)

    def p(self, put: list[tuple[str, int, int, bool]]) -> Tensor:
        """Next-token probabilities of all rows; (kind, layer, token, clean) are put back."""
        batch = self.lm.batch([self.ids] * (1 + self.setup.samples))

        def add(_: Tensor, out: Tensor) -> Tensor:
            noisy = out.clone()
            noisy[1:, self.start : self.end] += self.noise.to(out)
            return noisy

        def putting(key: tuple[str, int], token: int, clean: bool) -> Callable[..., Tensor]:
            values = self.outputs[key][:, token]

            def change(_: Tensor, out: Tensor) -> Tensor:
                whole = out.reshape(len(values), len(self.ids), -1).clone()
                whole[1:, token] = values[:1] if clean else values[1:]
                return whole.reshape(out.shape)

            return change

        with ExitStack() as stack:
            stack.enter_context(changed(self.lm.model.get_input_embeddings(), add))
            for kind, layer, token, clean in put:
                module = list(self.modules(kind))[layer]
                stack.enter_context(changed(module, putting((kind, layer), token, clean)))
            logits = self.lm.logits(batch)[:, -1]
        return logits.float().softmax(-1)

    def restored(self, put: list[tuple[str, int, int, bool]]) -> float:
        return float(self.p(put)[1:, self.token].mean())


def expected(plain: Plain, kind: str, layer: int, token: int) -> float:
    if kind == STATE:
        return plain.restored([(STATE, layer, token, True)])
    width, L = plain.setup.window, plain.lm.n_layers
    blocks = range(max(0, layer - width // 2), min(L, layer - (-width // 2)))
    return plain.restored([(kind, block, token, True) for block in blocks])


@pytest.mark.parametrize("family", ["gpt2", "falcon"])
def test_whole_passes_give_the_same_trace(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_family(family)
    fact = FACT.model_copy(update={"target_true": "the old river"})
    for request in (FACT, fact):
        parts = trace(lm, request, SETUP)
        with monkeypatch.context() as patch:
            patch.setattr(tracing, "_runs_in_parts", lambda lm: False)
            whole = trace(lm, request, SETUP)
        assert whole.answer == parts.answer
        assert (whole.clean, whole.disturbed) == pytest.approx((parts.clean, parts.disturbed))
        for kind in KINDS:
            torch.testing.assert_close(whole.scores[kind], parts.scores[kind], rtol=0, atol=1e-6)
        for name in SEVERED:
            torch.testing.assert_close(whole.severed[name], parts.severed[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_straightforward_computation(family: str) -> None:
    lm = tiny_family(family)
    plain, found = Plain(lm, SETUP), trace(lm, FACT, SETUP)
    p = plain.p([])
    assert found.clean == pytest.approx(float(p[0, plain.token]), abs=1e-6)
    assert found.disturbed == pytest.approx(float(p[1:, plain.token].mean()), abs=1e-6)
    T = len(plain.ids)
    for kind in KINDS:
        for layer in range(lm.n_layers):
            for token in (plain.start, plain.end - 1, T - 2, T - 1):
                value = expected(plain, kind, layer, token)
                assert found.scores[kind][token, layer].item() == pytest.approx(value, abs=1e-5)
    last = plain.end - 1
    for name, part in SEVERED.items():
        for layer in range(lm.n_layers):
            put = [(part, block, last, False) for block in range(layer + 1, lm.n_layers)]
            value = plain.restored([(STATE, layer, last, True), *put])
            assert found.severed[name][layer].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("width", "centred"),
    [
        (1, [[0], [1], [2], [3]]),
        (2, [[0], [0, 1], [1, 2], [2, 3]]),
        (3, [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]),
        (10, [[0, 1, 2, 3]] * 4),
    ],
)
def test_a_window_has_its_width(width: int, centred: list[list[int]]) -> None:
    """Blocks l - w//2 to l - (-w//2) - 1; a window of one block restores that block."""
    assert [list(Group(MLP, layer).window(4, width)) for layer in range(4)] == centred


@pytest.mark.parametrize("width", [1, 3])
def test_odd_windows_equal_the_straightforward_computation(width: int) -> None:
    lm = tiny_family("llama")
    setup = TraceSettings(noise=1.0, samples=2, window=width, seed=4)
    plain, found = Plain(lm, setup), trace(lm, FACT, setup)
    for kind in (MLP, ATTENTION):
        for layer in range(lm.n_layers):
            token = plain.end - 1
            value = expected(plain, kind, layer, token)
            assert found.scores[kind][token, layer].item() == pytest.approx(value, abs=1e-5)
        # Every block but the last restores something; that one's attention is not read here.
        assert found.indirect(kind)[plain.end - 1, :-1].abs().min() > 0


@pytest.fixture
def lm() -> Lm:
    return tiny_family("gpt2")


def test_without_noise_nothing_is_lost_and_nothing_gained(lm: Lm) -> None:
    found = trace(lm, FACT, TraceSettings(noise=0.0, samples=2))
    assert found.total_effect == pytest.approx(0, abs=1e-7)
    for kind in KINDS:
        assert found.indirect(kind).abs().max() < 1e-6


def test_the_last_state_of_the_last_token_is_all(lm: Lm) -> None:
    found = trace(lm, FACT, SETUP)
    assert found.scores[STATE][-1, -1].item() == pytest.approx(found.clean, abs=1e-6)
    before = found.scores[STATE][: found.subject[0]]
    assert torch.equal(before, torch.full_like(before, found.disturbed))


def test_the_number_of_rows_does_not_matter(lm: Lm) -> None:
    whole, parts = (
        trace(lm, FACT, TraceSettings(noise=1.0, samples=3, window=2, seed=4, rows=rows))
        for rows in (512, 6)
    )
    for kind in (STATE, MLP, ATTENTION):
        torch.testing.assert_close(whole.scores[kind], parts.scores[kind], atol=1e-6, rtol=0)


def test_noise_is_three_times_the_embeddings_deviation(lm: Lm) -> None:
    E = lm.model.get_input_embeddings().weight
    one, two = lm.encode("The tower"), lm.encode("a boat")
    deviation = float(E[[*one, *two]].float().std())
    assert subject_noise(lm, ["The tower", "a boat"]) == pytest.approx(3 * deviation)


def test_the_probe_shows_values_and_draws_maps(lm: Lm) -> None:
    options = build_options(load("rome").method, {"trace_samples": 2, "trace_window": 2}, lm)
    editor = Editor(load("rome"), lm, options, Prepared())
    found = editor.probe(FACT, editor.locate(FACT))
    assert found.values["total effect"] == found.values["p(clean)"] - found.values["p(disturbed)"]
    assert len(found.values["state: p"]) == len(found.values["tokens"])
    assert [chart.title for chart in found.charts][-1] == "At the subject's last token"
    noise, setup = found.values["noise"], TraceSettings(found.values["noise"], 2, 2)
    span = random_span(lm, FACT, 0)
    again = describe_trace(trace(lm, FACT, setup), noise, trace(lm, FACT, setup, span, [STATE]))
    assert again.values == found.values
    assert again.averages == found.averages


def test_the_control_disturbs_as_many_tokens_beside_the_subject(lm: Lm) -> None:
    ids, start, end = lm.subject_span(FACT.prompt, FACT.subject)
    spans = {random_span(lm, FACT, seed) for seed in range(40)}
    assert len(spans) > 3
    for span in spans:
        assert span is not None
        a, b = span
        assert b - a == end - start
        assert 0 <= a < b <= len(ids)
        assert b <= start or a >= end
    whole = FACT.model_copy(update={"prompt": "{}"})
    assert random_span(lm, whole, 0) is None
    control = trace(lm, FACT, SETUP, (0, 2), [STATE])
    assert control.subject == (0, 2)
    assert set(control.scores) == {STATE}


def test_averages_are_by_part_of_the_prompt(lm: Lm) -> None:
    found = trace(lm, FACT, SETUP)
    parts = buckets(found)
    start = found.subject[0]
    assert sorted(i for places in parts.values() for i in places) == list(
        range(start, len(found.tokens))
    )
    middle = found.indirect(STATE)[parts["middle subject tokens"]].mean(0)
    assert effects(found, STATE)["middle subject tokens"] == pytest.approx(middle.tolist())
    assert effects(found, MLP)["last token"] == found.indirect(MLP)[-1].tolist()


def test_the_whole_present_answer_is_traced(lm: Lm) -> None:
    """P(answer) is joint; a slow run with the answer's earlier tokens gives the same."""
    fact = FACT.model_copy(update={"target_true": "the old river"})
    found = trace(lm, fact, SETUP)
    before, answer = lm.with_target(fact.text, "the old river")
    assert len(answer) > 1
    (score,) = score_targets(lm, [(fact.text, "the old river")])
    assert found.clean == pytest.approx(math.exp(len(answer) * score.log_probability), rel=1e-4)
    assert found.answer.strip() == "the old river"
    assert len(found.tokens) == len(before)
    plain = Plain(lm, SETUP)
    plain.ids = [*before, *answer[:-1]]
    token, layer = found.subject[1] - 1, 1
    for kind in KINDS:
        width = SETUP.window
        blocks = range(max(0, layer - width // 2), min(lm.n_layers, layer - (-width // 2)))
        put = [(kind, block, token, True) for block in ([layer] if kind == STATE else blocks)]
        value = joint(lm, plain, put, len(before), answer)
        assert found.scores[kind][token, layer].item() == pytest.approx(value, rel=1e-3)


def joint(
    lm: Lm, plain: Plain, put: list[tuple[str, int, int, bool]], first: int, answer: list[int]
) -> float:
    """The mean over the disturbed rows of the product over the answer's tokens."""
    whole, product = plain.ids, torch.ones(SETUP.samples)
    for step, token in enumerate(answer):
        plain.ids = whole[: first + step]
        product *= plain.p(put)[1:, token]
    plain.ids = whole
    return float(product.mean())


def test_the_own_top_token_as_present_answer_changes_nothing(lm: Lm) -> None:
    with torch.no_grad():
        lm.embeddings("output")[lm.encode(" the")[0]] *= 30.0  # tied: the noise stays the same
    own = trace(lm, FACT, SETUP)
    answer = own.answer if own.answer.startswith(" ") else f" {own.answer}"
    told = Request(
        prompt=FACT.prompt, subject=FACT.subject, target_new="x", target_true=answer.strip()
    )
    again = trace(lm, told, SETUP)
    assert again.answer == answer
    assert again.clean <= own.clean or answer == own.answer
    assert torch.equal(again.scores[STATE], own.scores[STATE]) == (answer == own.answer)


def test_the_notebooks_pooling_takes_all_tokens_of_all_facts(lm: Lm) -> None:
    """Two facts: a subject of several tokens, and one of one token, which is first and last."""
    short = FACT.model_copy(update={"subject": "I", "prompt": "{} the"})
    traces = [trace(lm, fact, SETUP) for fact in (FACT, short)]
    parts = [notebook_rows(found, STATE) for found in traces]
    for found, rows in zip(traces, parts, strict=True):
        start, end = found.subject
        assert rows["first subject token"] == [found.scores[STATE][start].tolist()]
        assert rows["last subject token"] == [found.scores[STATE][end - 1].tolist()]
        assert rows["first token after"] == [found.scores[STATE][end].tolist()]
        assert len(rows.get("middle subject tokens", [])) == max(0, end - start - 2)
    assert parts[1]["first subject token"] == parts[1]["last subject token"]
    assert parts[1]["first token after"] == parts[1]["last token"]
    pooled = [Pooled({"state": rows}, f.disturbed) for f, rows in zip(traces, parts, strict=True)]
    averages = average_tokens(pooled)["state"]
    both = [row for rows in parts for row in rows.get("middle subject tokens", [])]
    baseline = sum(found.disturbed for found in traces) / 2
    expected = [sum(place) / len(both) - baseline for place in zip(*both, strict=True)]
    assert averages["middle subject tokens"]["mean"] == pytest.approx(expected)
    assert averages["middle subject tokens"]["n"] == len(both)
    assert averages["first subject token"]["n"] == 2
