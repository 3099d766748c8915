"""Plans: weights are counted exactly, nothing is loaded, and what is predicted is about right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.actions.estimate import ACHIEVED, Estimate, estimate
from lmedit.compare.comparison import predict_memory
from lmedit.models import load_lm, outline
from lmedit.options import Options, build_options
from lmedit.planning import block_flops, head_flops, logits, weights
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm
from lmedit.types import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmedit import Editor
    from lmedit.registry import LoadedMethod

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, and nothing else of a model."""
    tiny_family("llama").model.config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_an_outline_needs_the_config_alone(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    lm, real = outline(str(folder), dtype="float64"), tiny_family("llama")
    assert {p.device.type for p in lm.model.parameters()} == {"meta"}
    found, expected = (
        {n: (p.shape, p.dtype) for n, p in each.model.named_parameters()} for each in (lm, real)
    )
    assert found == expected
    assert lm.mlp_out(2) == real.mlp_out(2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_to_the_byte(family: str, dtype: str, tmp_path: Path) -> None:
    real = tiny_family(family, getattr(torch, dtype))
    real.model.save_pretrained(tmp_path / "model")
    real.tokenizer.save_pretrained(tmp_path / "model")
    for asked in (dtype, "auto"):
        found = weights(outline(str(tmp_path / "model"), dtype=asked))
        assert found == weights(load_lm(str(tmp_path / "model"), dtype=asked, device="cpu"))


def test_operations_are_those_of_a_forward_pass() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    lm = tiny_lm()
    batch = lm.batch([list(range(5, 45))])
    with FlopCounterMode(display=False) as counter:
        lm.logits(batch)
    expected = block_flops(lm, 40, lm.n_layers) + head_flops(lm, 40)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.2)  # attention aside


@pytest.fixture
def planned(plugin: Callable[..., LoadedMethod]) -> Callable[..., Estimate]:
    def make(work: dict[str, Work] | None = None) -> Estimate:
        loaded = plugin(edit_plan=lambda: work) if work is not None else plugin()
        return estimate(loaded, tiny_lm(), build_options(loaded.method, {}), CPU)

    return make


def test_a_plan_adds_up_and_says_whether_it_fits(
    planned: Callable[..., Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmedit.actions.estimate.free", lambda _: 5e9)
    work = {"prepare": Work({"a": 1e9, "b": 2e9}, 1e15), "edit": Work({"c": 7.0}, 1.0)}
    found = planned(work)
    fixed = sum(found.fixed.values())
    assert found.total("prepare") == fixed + 3e9
    assert found.fits is True
    told = found.as_json()
    read = logits(tiny_lm(), 8 * 24)  # eight held-out lines, before and after the edit
    assert told["parts"]["edit"]["memory"] == {"c": 7.0, "logits of held-out lines": read}
    assert told["parts"]["edit"]["time"] == "seconds"
    assert told["parts"]["prepare"]["time"] != "seconds"
    assert planned({"edit": Work({"much": 1e12})}).fits is False


def test_a_silent_method_is_planned_for_its_model_alone(planned: Callable[..., Estimate]) -> None:
    found = planned()
    assert found.work == {}
    assert found.fixed["weights"] == weights(tiny_lm())


def test_where_the_system_cannot_tell_nothing_is_made_up(
    planned: Callable[..., Estimate],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    editor: Callable[..., Editor],
) -> None:
    monkeypatch.setattr("lmedit.memory.from_proc", lambda *_: None)
    found = planned({"edit": Work({"a": 1.0})})
    assert (found.free, found.fits) == (None, None)
    assert list(found.fixed) == ["weights"]
    assert predict_memory(editor(edit_plan=lambda: {"edit": Work({"a": 1.0})}), 1) is None


def test_a_prediction_is_what_is_held_and_what_comes_on_top(
    editor: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmedit.compare.comparison.in_use", lambda _: 3 * 2.0**20)
    asked: list[int] = []

    def says(requests: int) -> dict[str, Work]:
        asked.append(requests)
        return {"edit": Work({"a": requests * 2.0**20})}

    assert predict_memory(editor(edit_plan=says), 8) == 11
    assert asked == [8]
    assert predict_memory(editor(), 8) is None


def test_time_classes_follow_the_operations() -> None:
    made = Estimate(
        {str(n): Work({}, n * ACHIEVED) for n in (1, 100, 10_000, 10**6)}, {}, None, 1.0
    )
    assert [made.time_class(name) for name in made.work] == ["seconds", "minutes", "hours", "days"]


def test_options_are_plain(planned: Callable[..., Estimate]) -> None:
    assert Options().untuned is False
    assert Options.tries(tiny_lm()) == {}
