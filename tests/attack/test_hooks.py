"""Around hooks: all state is put back, every exception is a failure, and time has a limit."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Dense, Lm, Location, Method, Options, Request, Update, hookimpl
from lmedit.errors import BrokenPluginError, HookError
from lmedit.guards.hooks import EDIT_VARIABLE, TimeUpError, at_most
from lmedit.pipeline import Editor
from lmedit.registry import load_file, register
from lmedit.types import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FACT = Request(prompt="{} stands in", subject="The tower", target_new="the sea")


def editor_that(lm: Lm, act: Callable[[Lm, Request], object]) -> Editor:
    """An editor of a method that does *act*, and then changes nothing."""

    def edit_describe() -> Method:
        return Method("toy", "no paper", Options)

    def edit_locate() -> Location:
        return Location((lm.mlp_out(0),))

    def edit_compute(lm: Lm, request: Request) -> Update:
        act(lm, request)
        return Update({lm.mlp_out(0): Dense(torch.zeros_like(lm.weight(lm.mlp_out(0))))})

    hooks = {f.__name__: hookimpl(f) for f in (edit_describe, edit_locate, edit_compute)}
    loaded = register(SimpleNamespace(**hooks), name=None, distribution="toy", version="1")
    return Editor(loaded, lm, loaded.method.options(), Prepared())


def first_buffer(lm: Lm) -> torch.Tensor:
    module = lm.model.get_submodule("transformer.ln_f")
    if "extra" not in module._buffers:
        module.register_buffer("extra", torch.ones(3))
    return module.extra


def set_(holder: Callable[[Lm], Any], name: str, value: Any) -> Callable[[Lm, Request], object]:
    return lambda lm, _: setattr(holder(lm), name, value)


def norm(lm: Lm) -> Any:
    return lm.model.get_submodule("transformer.ln_f")


CHANGES: dict[str, Callable[[Lm, Request], object]] = {
    "buffer": lambda lm, _: first_buffer(lm).mul_(2),
    "epsilon": set_(norm, "eps", 1.0),
    "config": set_(lambda lm: lm.model.config, "n_layer", 99),
    "scaling": set_(lambda lm: lm.model.get_submodule("transformer.h.0.attn"), "scaling", 9.0),
    "padding side": set_(lambda lm: lm.tokenizer, "padding_side", "left"),
    "end token": set_(lambda lm: lm.tokenizer, "eos_token", "a"),
    "forward of a class": lambda lm, _: setattr(type(norm(lm)), "forward", lambda _, x: 2 * x),
    "call of a class": lambda lm, _: setattr(type(lm.model), "__call__", lambda *_: None),
    "softmax": set_(lambda _: torch.nn.functional, "softmax", lambda x, **_: x),
    "torch's softmax": set_(lambda _: torch, "softmax", lambda x, *_: x),
    "hook on all": lambda *_: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
    "autocast": lambda *_: torch.set_autocast_enabled("cpu", True),
    "precision": lambda *_: torch.set_float32_matmul_precision("medium"),
    "default device": lambda *_: torch.set_default_device("meta"),
    "default type": lambda *_: torch.set_default_dtype(torch.float64),
    "recursion limit": lambda *_: sys.setrecursionlimit(5000),
    "threads": lambda *_: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic": lambda *_: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_around_a_hook_is_put_back_and_told(lm: Lm, kind: str) -> None:
    first_buffer(lm)
    before, limit = lm.next_probabilities("The tower"), sys.getrecursionlimit()
    attention = lm.model.get_submodule("transformer.h.0.attn")
    attention.scaling = getattr(attention, "scaling", 1.0)
    with pytest.raises(BrokenPluginError, match="left behind"):
        editor_that(lm, CHANGES[kind]).compute(FACT)
    assert torch.equal(lm.next_probabilities("The tower"), before)
    assert sys.getrecursionlimit() == limit
    assert torch.get_default_dtype() == torch.float32
    editor_that(lm, lambda *_: None).compute(FACT)


def test_the_request_of_the_caller_is_not_the_methods(lm: Lm) -> None:
    fact = FACT.model_copy(deep=True)
    editor_that(lm, lambda _, r: r.__dict__.update(target_new="other")).compute(fact)
    assert fact == FACT


@pytest.mark.parametrize("kind", [BaseException, SystemExit, GeneratorExit, MemoryError])
def test_every_exception_of_a_hook_is_a_failure_of_the_edit(
    lm: Lm, kind: type[BaseException]
) -> None:
    def act(*_: Any) -> None:
        raise kind("x")

    with pytest.raises(HookError, match=kind.__name__):
        editor_that(lm, act).compute(FACT)


def test_every_exception_of_an_import_breaks_the_plugin_alone(tmp_path: Path) -> None:
    for text in (
        "raise BaseException('x')",
        "raise SystemExit(3)",
        "raise GeneratorExit",
        "(" * 900,
    ):
        (tmp_path / "toy.py").write_text(text)
        with pytest.raises(BrokenPluginError):
            load_file(tmp_path / "toy.py")


def stubborn() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:  # noqa: BLE001
            continue


def test_an_endless_hook_is_ended(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EDIT_VARIABLE, "0.3")
    started = time.monotonic()
    with pytest.raises(HookError, match=r"more than 0\.3 s"):
        editor_that(lm, lambda *_: stubborn()).compute(FACT)
    assert time.monotonic() - started < 60
    editor_that(lm, lambda *_: None).compute(FACT)


def test_a_limit_ends_with_its_block() -> None:
    with pytest.raises(TimeUpError), at_most(30), at_most(0.05):
        stubborn()
    with at_most(0.05):
        pass
    time.sleep(0.1)
