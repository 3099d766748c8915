"""`EditorContract`: the laws of `hookspecs.py` as tests, for every author.

In a plugin's tests::

    class TestContract(EditorContract):
        method = "nudge"          # or: plugin = nudge_module

Each test bears its law's number. It runs on a tiny random GPT-2 unless `lm` is overridden.
"""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lmedit.artifacts import Checkpoint
from lmedit.options import build_options
from lmedit.pipeline import Editor
from lmedit.registry import load, register
from lmedit.tiny import TEXTS, tiny_lm
from lmedit.types import Case, Prepared, Request, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.registry import LoadedMethod
    from lmedit.types import Location


class Texts:
    """A tiny corpus for the contract."""

    name = "contract"
    digest = "contract"

    def __iter__(self) -> Iterator[str]:
        """Yield 60 lines of words in random order, the same every time."""
        words = " ".join(TEXTS).split()
        draw = random.Random(0)  # noqa: S311  (no secret)
        for _ in range(60):
            yield " ".join(draw.choices(words, k=12))


class Records:
    """Tiny cases for methods that are trained on cases."""

    name = "contract cases"
    digest = "contract cases"

    def __iter__(self) -> Iterator[Case]:
        """Yield 40 cases about as many towers, each with two neighbours."""
        for number in range(40):
            yield Case(
                id=str(number),
                request=Request(
                    prompt="{} is in the city of", subject=f"The tower {number}",
                    target_new="the sea" if number % 2 else "the river", target_true="it",
                ),
                paraphrases=(f"Nobody in the city knew the tower {number}, by",),
                neighbours=("A small boat came down", "The old city is by"),
            )  # fmt: skip


class EditorContract:
    """Inherit, and name the method (or give the plugin object); add what is your own below."""

    method: str | None = None
    plugin: Any = None
    options: Mapping[str, Any] = {}
    request = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
    other = Request(prompt="{} came down by", subject="A small boat", target_new="the old river")

    @pytest.fixture
    def lm(self) -> Lm:
        """The model the laws are tried on."""
        return tiny_lm()

    @pytest.fixture
    def loaded(self) -> LoadedMethod:
        """The method under test in its own plugin manager."""
        if self.plugin is not None:
            return register(self.plugin, name=None, distribution="under test", version="0")
        if self.method is None:
            raise TypeError("name the method, or give the plugin")
        return load(self.method)

    @pytest.fixture
    def editor(self, loaded: LoadedMethod, lm: Lm, tmp_path: Path) -> Editor:
        """The method prepared on a tiny corpus."""
        return self._prepared(loaded, lm, tmp_path / "fixture")

    def _prepared(self, loaded: LoadedMethod, lm: Lm, folder: Path) -> Editor:
        options = build_options(loaded.method, self.options, lm)
        material = Records() if loaded.method.prepares_on == "cases" else Texts()
        prepared: Prepared = loaded.manager.hook.edit_prepare(
            lm=lm, options=options, corpus=material, checkpoint=Checkpoint(folder / "state"),
            beside=(),
        )  # fmt: skip
        return Editor(loaded, lm, options, prepared)

    def test_law_1_name_and_defaults(self, loaded: LoadedMethod) -> None:
        """1: the name is the entry point's, and every option has a default."""
        assert self.method is None or loaded.method.name == self.method
        loaded.method.options()

    def test_law_2_compute_leaves_no_trace(
        self, loaded: LoadedMethod, lm: Lm, tmp_path: Path
    ) -> None:
        """2: no hook that computes changes weights, flags, mode or random state."""
        for parameter in list(lm.model.parameters())[::2]:
            parameter.requires_grad_(True)
        before = _state(lm)
        editor = self._prepared(loaded, lm, tmp_path)
        location, _ = self._raw_update(editor)
        loaded.manager.hook.edit_probe(location=location, **self._arguments(editor))
        assert _state(lm) == before

    def test_law_3_sites_are_parameters(self, editor: Editor) -> None:
        """3: located sites are parameters of the model."""
        location = editor.loaded.manager.hook.edit_locate(**self._arguments(editor))
        parameters = dict(editor.lm.model.named_parameters())
        assert location.sites
        assert [site for site in location.sites if site.parameter not in parameters] == []

    def test_law_4_deltas_fit(self, editor: Editor) -> None:
        """4: every delta belongs to a located site, has its shape, and is finite."""
        location, update = self._raw_update(editor)
        assert update.deltas
        for site, delta in update.deltas.items():
            assert site in location.sites
            assert delta.shape == tuple(editor.lm.weight(site).shape)
            assert bool(delta.dense().isfinite().all())

    def test_law_5_same_arguments_same_update(self, editor: Editor) -> None:
        """5: the same arguments and seed give the same update, to the bit."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            first = self._raw_update(editor)[1]
            torch.manual_seed(2)
            second = self._raw_update(editor)[1]
        assert set(first.deltas) == set(second.deltas)
        for site, delta in first.deltas.items():
            for name, tensor in delta.tensors().items():
                assert torch.equal(tensor, second.deltas[site].tensors()[name])

    def test_law_6_revert_is_exact(self, editor: Editor) -> None:
        """6: apply, then revert, is exact to the bit, also when what is in between fails."""
        lm, hook = editor.lm, editor.loaded.manager.hook
        location, update = self._raw_update(editor)
        if not _lawful(lm, location, update):
            pytest.skip("the update breaks law 3 or 4, so it cannot be applied")
        before = lm.weights_digest()
        applied = hook.edit_apply(lm=lm, update=update)
        assert lm.weights_digest() != before, "apply changed nothing"
        assert hook.edit_revert(lm=lm, applied=applied) is True
        assert lm.weights_digest() == before
        with pytest.raises(KeyboardInterrupt):
            _interrupted(editor, update)
        assert lm.weights_digest() == before

    def test_law_7_together_as_if_alone(self, editor: Editor) -> None:
        """7: updates worked out together are those worked out alone, to rounding."""
        requests = [self.request, self.other, self.request]
        locations = [
            editor.loaded.manager.hook.edit_locate(**{**self._arguments(editor), "request": each})
            for each in requests
        ]
        found = editor.loaded.manager.hook.edit_compute_many(
            lm=editor.lm, requests=requests, locations=locations, options=editor.options,
            prepared=editor.prepared,
        )  # fmt: skip
        if found is None:
            return
        assert len(found) == len(requests)
        for request, location, update in zip(requests, locations, found, strict=True):
            arguments = {**self._arguments(editor), "request": request, "location": location}
            alone = editor.loaded.manager.hook.edit_compute(**arguments)
            assert _alike(update, alone)

    def _arguments(self, editor: Editor) -> dict[str, Any]:
        """What every hook that computes is given."""
        return {
            "lm": editor.lm, "request": self.request, "options": editor.options,
            "prepared": editor.prepared,
        }  # fmt: skip

    def _raw_update(self, editor: Editor) -> tuple[Any, Update]:
        """Location and update straight from the hooks, without the pipeline's own checks."""
        arguments = self._arguments(editor)
        location = editor.loaded.manager.hook.edit_locate(**arguments)
        update = editor.loaded.manager.hook.edit_compute(location=location, **arguments)
        return location, update


def _interrupted(editor: Editor, update: Update) -> None:
    """Apply *update* as the pipeline does, and be interrupted."""
    with editor.applied(update):
        raise KeyboardInterrupt


def _lawful(lm: Lm, location: Location, update: Update) -> bool:
    """Whether sites and deltas keep the laws 3 and 4."""
    parameters = dict(lm.model.named_parameters())
    return all(site.parameter in parameters for site in location.sites) and all(
        site in location.sites
        and delta.dense().shape == lm.weight(site).shape
        and bool(delta.dense().isfinite().all())
        for site, delta in update.deltas.items()
    )


def _alike(one: Update, other: Update) -> bool:
    """Whether two updates differ by rounding alone: 1e-6 in double precision, else 1e-2."""
    if set(one.deltas) != set(other.deltas):
        return False
    for site, delta in one.deltas.items():
        expected = other.deltas[site].dense()
        double = expected.dtype == torch.float64
        apart = (delta.dense() - expected).norm()
        if not bool(apart <= (1e-6 if double else 1e-2) * expected.norm()):
            return False
    return True


def _state(lm: Lm) -> dict[str, Any]:
    """All that law 2 protects."""
    model = lm.model
    return {
        "weights": lm.weights_digest(),
        "buffers": {name: copy.deepcopy(b.tolist()) for name, b in model.named_buffers()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": [name for name, p in model.named_parameters() if p.grad is not None],
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: _hooks(module) for name, module in model.named_modules()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
    }


def _hooks(module: torch.nn.Module) -> tuple[int, ...]:
    """How many hooks of each kind *module* has, and whether its forward was replaced."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (*(len(getattr(module, kind)) for kind in kinds), int("forward" in vars(module)))
