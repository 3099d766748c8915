"""A subject at the start of a text without BOS: its key is checked, and replaced if unsound."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmedit import Request, build_options, load
from lmedit.metrics.harm import unsound
from lmedit.pipeline import prepare
from lmedit.tiny import tiny_lm
from lmedit.types import Prepared
from lmedit.values import sample_contexts
from lmedit_rome import LEAST_SHARE, _push, _sounder, _warnings
from lmedit_rome.keys import Keys, select_keys
from lmedit_rome.options import RomeOptions

FAR = Keys(
    bare=torch.tensor([0.01, 1.0], dtype=torch.float64),
    mean=torch.tensor([0.9, 0.1], dtype=torch.float64),
    bare_out=torch.zeros(2, dtype=torch.float64),
    mean_out=torch.ones(2, dtype=torch.float64),
    first=True,
    sampled=torch.tensor([1.0, 0.0], dtype=torch.float64),
    sampled_out=torch.full((2,), 3.0, dtype=torch.float64),
)


def test_the_share_is_that_of_the_denominators() -> None:
    assert abs(FAR.share(None) - 0.01) < 1e-12
    L = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    u = torch.linalg.solve(L @ L.T, FAR.sampled)  # type: ignore[arg-type]
    assert abs(FAR.share(L) - float(FAR.bare @ u / (FAR.sampled @ u))) < 1e-12  # type: ignore[operator]
    assert replace(FAR, sampled=None).share(None) == 1.0


def test_the_contexts_key_is_taken_only_at_the_start_and_only_where_the_own_one_breaks() -> None:
    options = RomeOptions()
    chosen = _sounder(FAR, None, options)
    assert chosen is not None
    assert torch.equal(chosen.bare, FAR.sampled)
    assert torch.equal(chosen.bare_out, FAR.sampled_out)
    assert _sounder(replace(FAR, first=False), None, options) is None
    assert _sounder(replace(FAR, bare=torch.ones(2).double()), None, options) is None
    assert _sounder(FAR, None, RomeOptions(at_start="published")) is None
    told = _warnings(FAR, chosen, None, options)
    assert told["key"] == "contexts"
    assert "no BOS precedes it" in told["remarks"][0]
    assert "unsound" not in told


def test_an_unsound_key_that_is_kept_is_said() -> None:
    kept = _warnings(FAR, FAR, None, RomeOptions(at_start="published"))
    assert "0.01 of what the contexts' key has along u" in kept["unsound"]
    near = replace(FAR, bare=torch.ones(2).double())
    assert _warnings(near, near, None, RomeOptions()) == {"bare_share": 1.0}


def test_the_place_of_the_subject_and_the_notes_of_an_edit() -> None:
    lm, rome = tiny_lm(), load("rome")
    options = build_options(rome.method, {"layer": 1, "covariance": False, "steps": 2}, lm)
    editor = prepare(rome, lm, options, None)
    assert editor.prepared == Prepared()
    templates = sample_contexts(lm, options)
    (token,) = lm.encode("A")
    assert lm.decode([token]) == "A"
    start = Request(prompt="{} stands in the city", subject="A", target_new="river")
    later = Request(prompt="in {} city", subject="A", target_new="river")
    keys = [select_keys(lm, 1, request, templates, options) for request in (start, later)]
    assert [each.first for each in keys] == [True, False]
    for request, each in zip((start, later), keys, strict=True):
        update = editor.compute(request)
        share = each.share(None)
        assert abs(update.notes["bare_share"] - share) < 1e-9
        if share >= LEAST_SHARE:
            assert "key" not in update.notes
            assert unsound(update) is None


def test_an_insertion_that_moves_typical_keys_far_is_unsound() -> None:
    """|Lambda| sqrt(u^T C u) / |v0|, by hand: 3 * sqrt(2) / 2."""
    L = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
    keys = replace(FAR, bare_out=torch.tensor([0.0, 2.0], dtype=torch.float64))
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    far = _push(keys, u, torch.tensor([3.0, 0.0], dtype=torch.float64), L)
    assert abs(far["typical_push"] - 3 * 2**0.5 / 2) < 1e-12
    assert far["unsound"] == "it moves the output of a typical key by 2.1 lengths of its own"
    near = _push(keys, u, torch.tensor([0.3, 0.0], dtype=torch.float64), L)
    assert set(near) == {"typical_push"}
    assert _push(keys, u, torch.ones(2, dtype=torch.float64), None) == {}
