"""The methods of docs/examples keep the laws, and AlphaEdit's change is the one of its equation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit.registry import module_of
from lmedit.testing import EditorContract
from lmedit.trace import captured

if TYPE_CHECKING:
    from lmedit import Editor

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ALPHAEDIT: Any = module_of(EXAMPLES / "lmedit_alphaedit.py")


class TestAlphaEdit(EditorContract):
    """The laws; and that the computed change is the minimum that the paper asks for."""

    method = "alphaedit"
    plugin = ALPHAEDIT

    def test_the_change_is_its_equations(self, editor: Editor) -> None:
        """Delta P (k k^T P + weight I) = r k^T P, and Delta P = Delta P P."""
        lm, options = editor.lm, editor.options
        update = editor.compute(self.request)
        (delta,) = update.deltas.values()
        U, change = editor.prepared.tensors["U"], delta.dense()
        P = U @ U.T
        layer = editor.locate(self.request).evidence["layer"]
        k, r, losses = ALPHAEDIT.new_value(lm, self.request, layer, options)
        left = change @ (torch.outer(k, k) @ P + options.weight * torch.eye(len(k)).double())
        torch.testing.assert_close(left, torch.outer(r, k) @ P, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(change @ P, change, rtol=1e-6, atol=1e-9)
        assert losses[-1] < losses[0]
        assert change.norm() > 1e-3

    def test_the_key_is_that_of_the_subjects_last_token(self, editor: Editor) -> None:
        lm, request = editor.lm, self.request
        layer = editor.locate(request).evidence["layer"]
        k, _, _ = ALPHAEDIT.new_value(lm, request, layer, editor.options)
        ids, index = lm.subject_last(request.prompt, request.subject)
        with captured(lm.mlp_out_module(layer), stop=True) as box:
            lm.logits(lm.batch([ids]))
        torch.testing.assert_close(k, box.input.reshape(len(ids), -1)[index].double())

    def test_the_edited_model_says_what_was_asked_for_more_often(self, editor: Editor) -> None:
        lm, request = editor.lm, self.request
        token = lm.with_target(request.text, request.target_new)[1][0]
        before = lm.next_probabilities(request.text)[token]
        with editor.applied(editor.compute(request)):
            assert lm.next_probabilities(request.text)[token] > before


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_minimum_of_the_objective(seed: int) -> None:
    """The gradient of |(W + D P) k - v*|^2 + weight |D P|^2 by D is zero there."""
    draw = torch.Generator().manual_seed(seed)
    C, k, r = (torch.randn(*s, generator=draw).double() for s in ((9, 4), (9,), (5,)))
    U = ALPHAEDIT.null_space(C @ C.T, 1e-9)
    assert U.shape == (9, 5)
    P, weight = U @ U.T, 0.7
    left, right = ALPHAEDIT.projected_change(r, k, U, weight)
    D = (left @ right).requires_grad_()
    objective = ((D @ P @ k - r) ** 2).sum() + weight * ((D @ P) ** 2).sum()
    (gradient,) = torch.autograd.grad(objective, D)
    assert gradient.abs().max() < 1e-6
    torch.testing.assert_close(D.detach() @ C, torch.zeros(5, 4).double(), rtol=0, atol=1e-9)


def test_eigenvalues_below_the_threshold_are_free() -> None:
    C = torch.diag(torch.tensor([0.5, 0.01, 0.0, 0.03]).double())
    U = ALPHAEDIT.null_space(C, 0.02)
    torch.testing.assert_close(U @ U.T, torch.diag(torch.tensor([0.0, 1, 1, 0]).double()))
