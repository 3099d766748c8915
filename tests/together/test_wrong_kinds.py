"""Arguments of another type: every public function gives one line that says what to give."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmedit
from lmedit.errors import KINDS, MANY, LmeditError, WrongKindError
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLASSES = (lmedit.Ledger, lmedit.Lm)
"""Public classes that users make or call; plugins return the others, and these are checked."""


def kind_of(annotation: str) -> str:
    return annotation.removeprefix(MANY).removesuffix("]")


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, and the methods of `CLASSES` and of the editor that users call."""
    for name in lmedit.__all__:
        value = getattr(lmedit, name)
        if isinstance(value, FunctionType) and name != "hookimpl":
            yield name, value
    for one in CLASSES:
        yield f"{one.__name__}.__init__", one.__init__
    yield "Ledger.keep", lmedit.Ledger.keep
    yield "Editor.applied", lmedit.Editor.applied


PARAMETERS = [
    (name, function, parameter.name, str(parameter.annotation))
    for name, function in public()
    for parameter in inspect.signature(function).parameters.values()
    if kind_of(str(parameter.annotation)) in KINDS
]


def test_the_walk_finds_the_parameters() -> None:
    found = {(name, parameter) for name, _, parameter, _ in PARAMETERS}
    assert found >= {
        ("applied", "lm"),
        ("applied", "update"),
        ("best_edit", "lm"),
        ("best_edit", "request"),
        ("build_options", "method"),
        ("comparison", "editors"),
        ("editor", "lm"),
        ("load", "name"),
        ("load_lm", "name"),
        ("load_patch", "path"),
        ("prepare", "lm"),
        ("prepare", "loaded"),
        ("save_patch", "update"),
        ("Ledger.__init__", "lm"),
        ("Ledger.keep", "update"),
        ("Lm.__init__", "model"),
    }


@pytest.mark.parametrize(("name", "function", "parameter", "kind"), PARAMETERS)
def test_a_wrong_type_is_one_line(
    name: str, function: Callable[..., Any], parameter: str, kind: str
) -> None:
    one = kind_of(kind)
    for value in ("smollm2", Path("smollm2"), 3, {"a": 1}, tiny_lm().model, object()):
        fits = {"str": str, "str | Path": str | Path, "PreTrainedModel": torch.nn.Module}
        if one in fits and isinstance(value, fits[one]):
            continue
        given = [value] if kind != one else value
        with pytest.raises(WrongKindError, match=f"^{parameter} is .*, not ") as told:
            function(**{parameter: given})
        assert KINDS[one] in str(told.value), name
        assert "\n" not in str(told.value)
        assert isinstance(told.value, LmeditError)


def test_an_editor_takes_requests_alone() -> None:
    lm = tiny_lm()
    editor = lmedit.editor("ft", lm, layer=1)
    works: tuple[Callable[[Any], object], ...] = (editor.compute, editor.locate)
    for work in works:
        with pytest.raises(WrongKindError, match=r"not Request; give lmedit\.Request"):
            work("The capital of France is Rome")
    with pytest.raises(WrongKindError, match="not a list of Request"):
        lmedit.editor("locft-bf", lm, layer=1).compute_joint("a b")  # type: ignore[arg-type]
    with pytest.raises(WrongKindError, match="not a list of Editor"):
        lmedit.comparison(editor, "demo")  # type: ignore[arg-type]


def test_text_is_a_path_too(tmp_path: Path) -> None:
    lm = tiny_lm()
    request = lmedit.Request(prompt="{} is in", subject="The tower", target_new="the sea")
    update = lmedit.editor("ft", lm, layer=1).compute(request)
    lmedit.save_patch(str(tmp_path / "p.safetensors"), update, {"model": {"name": "a"}})
    assert (
        lmedit.load_patch(str(tmp_path / "p.safetensors"))[0].deltas.keys() == update.deltas.keys()
    )
    with pytest.raises(LmeditError, match="no model folder"):
        lmedit.load_lm(tmp_path / "none")
