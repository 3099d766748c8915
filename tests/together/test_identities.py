"""Methods as oracles for each other: EMMET and MEMIT of one fact against ROME (T2, T11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Editor, Request, build_options, load
from lmedit.pipeline import prepare
from lmedit.testing import Texts
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lmedit import Lm

FACT = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
SEARCH = {"prefixes": [], "steps": 5, "learning_rate": 0.5, "clamp": 4.0, "layer": 1}


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lm:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    return tiny_lm(2)


def editor_of(lm: Lm, method: str, **given: Any) -> Editor:
    loaded = load(method)
    return prepare(loaded, lm, build_options(loaded.method, SEARCH | given, lm), Texts())


def change(editor: Editor) -> Tensor:
    (delta,) = editor.compute(FACT).deltas.values()
    return delta.dense()


def test_emmet_of_one_fact_is_rome(lm: Lm) -> None:
    rome = change(editor_of(lm, "rome"))
    emmet = change(editor_of(lm, "emmet", target="mlp"))
    assert float((rome - emmet).norm() / rome.norm()) < 1e-9


def test_memit_of_one_fact_at_one_layer_is_a_share_of_rome(lm: Lm) -> None:
    """The share is s / (lambda + s) with s = k^T C^-1 k."""
    weight = 30.0
    rome = change(editor_of(lm, "rome"))
    memit = editor_of(lm, "memit", target="mlp", span=1, weight=weight)
    found = change(memit)
    share = float((found * rome).sum() / rome.square().sum())
    assert float((found - share * rome).norm() / rome.norm()) < 1e-9
    L = memit.prepared.tensors["cholesky.1"]
    direction = torch.linalg.svd(rome)[2][0]  # C^-1 k up to its length
    k = L @ (L.T @ direction)
    s_of = k @ torch.cholesky_solve(k[:, None], L)[:, 0]
    length = _key(lm).norm() / k.norm()
    s = float(s_of * length**2)
    assert share == pytest.approx(s / (weight + s), rel=1e-6)


def _key(lm: Lm) -> Tensor:
    """The input of the edited matrix at the subject's last token."""
    from lmedit.trace import captured

    ids, index = lm.subject_last(FACT.prompt, FACT.subject)
    with torch.no_grad(), captured(lm.mlp_out_module(1), stop=True) as box:
        lm.logits(lm.batch([ids[: index + 1]]))
    return box.input.reshape(-1, box.input.shape[-1])[index]
