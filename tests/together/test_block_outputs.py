"""A block may give a tensor, or a tuple that begins with one: methods do the same on both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmedit
from lmedit.testing import Records, Texts
from lmedit.tiny import tiny_family
from lmedit.trace import captured, first

if TYPE_CHECKING:
    from torch import nn

    from lmedit import Lm

FACT = lmedit.Request(
    prompt="{} stands in the city of",
    subject="The tower",
    target_new="the sea",
    target_true="the river",
)
METHODS: dict[str, dict[str, Any]] = {
    "rome": {"layer": 1, "steps": 3},
    "ft": {"layer": 1, "steps": 3},
    "kn": {},
    "mend": {"rank": 4, "steps": 2, "validate_every": 1, "batch": 4},
    "ke": {"hidden": 4, "condition": 4, "steps": 2, "validate_every": 1, "batch": 4},
}


def give(block: nn.Module, *, a_tuple: bool) -> None:
    """Let *block* give hooks a tuple, or a tensor; its model gets what it is made for."""
    native: Any = type(block)

    class Giving(native):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            self.natively_a_tuple = isinstance(found, tuple)
            return (first(found),) if a_tuple else first(found)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = first(super().__call__(*args, **kwargs))
            return (found,) if self.natively_a_tuple else found

    block.__class__ = Giving


def giving(family: str, *, a_tuple: bool) -> Lm:
    lm = tiny_family(family)
    for layer in range(lm.n_layers):
        give(lm.block(layer), a_tuple=a_tuple)
    return lm


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("a_tuple", [True, False])
def test_hooks_see_what_this_test_makes_of_a_block(family: str, a_tuple: bool) -> None:
    lm, plain = giving(family, a_tuple=a_tuple), tiny_family(family)
    batch = lm.batch([lm.encode(FACT.text)])
    with captured(lm.block(1)) as box:
        logits = lm.logits(batch)
    assert isinstance(box.whole, tuple) == a_tuple
    assert torch.equal(logits, plain.logits(batch))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_an_edit_is_the_same(
    method: str, family: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for a_tuple in (True, False):
        monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / str(a_tuple)))
        lm = giving(family, a_tuple=a_tuple)
        editor = lmedit.editor(
            method, lm, text=list(Texts()), cases=list(Records()), **METHODS[method]
        )
        location = editor.locate(FACT)
        if method in {"rome", "kn"}:
            found.append((editor.compute(FACT), editor.probe(FACT, location).values))
        else:
            found.append((editor.compute(FACT), {}))
    (one, probed), (other, again) = found
    assert probed == again
    assert one.deltas.keys() == other.deltas.keys()
    for site, delta in one.deltas.items():
        assert torch.equal(delta.dense(), other.deltas[site].dense())
