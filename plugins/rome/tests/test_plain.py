"""The value from the replay is the value from whole passes over every context."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmedit import build_options, load
from lmedit.tiny import FAMILIES, tiny_family
from lmedit.types import Request
from lmedit.values.contexts import sample_contexts
from lmedit.values.rows import rows_of
from lmedit.values.search import optimise_values
from lmedit_rome.keys import select_keys

spec = importlib.util.spec_from_file_location("plain_rome", Path(__file__).with_name("plain.py"))
assert spec is not None
assert spec.loader is not None
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)

REQUESTS = (
    Request(prompt="In the city {} is by the", subject="The old tower", target_new="river home"),
    Request(prompt="{} came down", subject="Nobody", target_new="the sea"),
)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_delta_is_that_of_whole_passes(family: str, dtype: torch.dtype, apart: float) -> None:
    lm = tiny_family(family, dtype)
    given = {"layer": 1, "prefixes": [[4, 3]], "steps": 6, "learning_rate": 0.05}
    options: Any = build_options(load("rome").method, given, lm)
    templates = sample_contexts(lm, options)
    starts = [select_keys(lm, 1, request, templates, options).bare_out for request in REQUESTS]
    rows = [rows_of(lm, request, templates, options) for request in REQUESTS]
    for request, v_0, found in zip(
        REQUESTS, starts, optimise_values(lm, 1, rows, starts, options), strict=True
    ):
        expected = plain.value(lm, 1, request, templates, v_0, options).double()
        assert found.delta.norm() > 0
        cosine = torch.nn.functional.cosine_similarity(found.delta, expected, dim=0)
        assert 1 - float(cosine) <= apart
        assert float(found.delta.norm() / expected.norm()) == pytest.approx(1, abs=10 * apart)


def test_where_memory_ends_the_rows_are_run_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to single rows, at any moment, to the same delta."""
    from lmedit.values import rows as module

    lm = tiny_family("gpt2")
    options: Any = build_options(load("rome").method, {"prefixes": [[4, 6]], "steps": 5}, lm)
    templates = sample_contexts(lm, options)
    text = rows_of(lm, REQUESTS[0], templates, options)
    v_0 = select_keys(lm, 1, REQUESTS[0], templates, options).bare_out
    expected = optimise_values(lm, 1, [text], [v_0], options)[0]
    calls: list[int] = []
    call = module._Chunk.__call__

    def fits(self: Any, deltas: torch.Tensor) -> torch.Tensor:
        calls.append(len(self.request_of))
        if len(self.request_of) > 2 and len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, deltas)

    monkeypatch.setattr(module._Chunk, "__call__", fits)
    found = optimise_values(lm, 1, [text], [v_0], options)[0]
    assert calls[:3] == [7, 7, 7]  # six contexts and the bare prompt, which begins with the essence
    assert 2 in calls
    torch.testing.assert_close(found.delta, expected.delta, rtol=1e-9, atol=1e-12)
    assert found.losses == pytest.approx(expected.losses, rel=1e-9)

    def never(self: Any, deltas: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module._Chunk, "__call__", never)
    with pytest.raises(torch.OutOfMemoryError):
        optimise_values(lm, 1, [text], [v_0], options)


def test_the_rows_of_a_finished_search_run_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three searches that end at different passes give what each gives alone."""
    from lmedit.values import rows as module

    lm = tiny_family("gpt2")
    free = {"kl_factor": 0, "decay": 0, "clamp": None, "learning_rate": 2}
    given: Any = {"prefixes": [[4, 3]], "steps": 12, "stop_loss": -1, **free}
    options: Any = build_options(load("rome").method, given, lm)
    templates = sample_contexts(lm, options)
    asked = [*REQUESTS[:2], REQUESTS[0].model_copy(update={"target_new": " big old house"})]
    texts = [rows_of(lm, request, templates, options) for request in asked]
    starts = [select_keys(lm, 1, each, templates, options).bare_out for each in asked]

    def search_alone(options: Any) -> list[Any]:
        return [
            optimise_values(lm, 1, [text], [v_0], options)[0]
            for text, v_0 in zip(texts, starts, strict=True)
        ]

    middle = sorted(search_alone(options), key=lambda value: value.losses[0])[1].losses
    stop = (middle[3] + middle[4]) / 2
    options = build_options(load("rome").method, given | {"stop_loss": stop}, lm)
    alone = search_alone(options)
    assert {len(value.losses) for value in alone} == {1, 5, 12}
    ran: list[int] = []
    begin, call = module.LossRows.log_probabilities, module._Chunk.__call__

    def begin_pass(self: Any, *given: Any) -> Any:
        ran.append(0)
        return begin(self, *given)

    def count(self: Any, deltas: torch.Tensor) -> torch.Tensor:
        ran[-1] += len(self.request_of)  # long and short rows may run in groups of their own
        return call(self, deltas)

    monkeypatch.setattr(module.LossRows, "log_probabilities", begin_pass)
    monkeypatch.setattr(module._Chunk, "__call__", count)
    together = optimise_values(lm, 1, texts, starts, options)
    for one, expected in zip(together, alone, strict=True):
        assert len(one.losses) == len(expected.losses)
        torch.testing.assert_close(one.delta, expected.delta, rtol=1e-4, atol=1e-5)
    of_each = [len(module._once([text])[0]) for text in texts]
    passes = max(len(value.losses) for value in alone)
    assert ran == [
        sum(n for n, value in zip(of_each, alone, strict=True) if len(value.losses) > step)
        for step in range(passes)
    ]


def test_an_edit_costs_in_proportion_to_its_tokens() -> None:
    """Each word behind the subject, and each token of the answer, costs no more than the last one.

    Also beside a short edit: its rows do not run to the end of the long ones.
    """
    lm = tiny_family("gpt2")
    options: Any = build_options(
        load("rome").method, {"prefixes": [[4, 6]], "steps": 5, "stop_loss": -1}, lm
    )
    templates = sample_contexts(lm, options)

    def request(words: int, answer: int) -> Request:
        return Request(
            prompt="{} is" + " in" * words, subject="A", target_new="b" * answer, target_true="c"
        )

    def count(*requests: Request) -> int:
        texts = [rows_of(lm, each, templates, options) for each in requests]
        starts = [select_keys(lm, 1, r, templates, options).bare_out for r in requests]
        with FlopCounterMode(display=False) as counter:
            optimise_values(lm, 1, texts, starts, options)
        return int(counter.get_total_flops())

    for long in (lambda n: request(n, 1), lambda n: request(1, n)):
        few, more, most = (count(long(n)) for n in (4, 12, 28))
        assert most - more <= 1.1 * (28 - 12) / (12 - 4) * (more - few)
    short, long_one = request(1, 1), request(28, 1)
    both = count(short, short, short, long_one)
    assert both <= 1.1 * (3 * count(short) + count(long_one))
