"""`EditorContract`: the laws of `hookspecs.py` as tests, for every author.

In a plugin's tests::

    class TestContract(EditorContract):
        method = "nudge"          # or: plugin = nudge_module

Each test bears its law's number and calls the law (`lmedit.laws`). It runs on a tiny random GPT-2
unless `lm` is overridden. It needs pytest; `lmedit check` tries the same laws without.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from lmedit import laws
from lmedit.options import build_options
from lmedit.pipeline import Editor
from lmedit.registry import load, register
from lmedit.storage.tensors import Checkpoint
from lmedit.tiny import TEXTS, tiny_lm
from lmedit.types import Case, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.registry import LoadedMethod
    from lmedit.types import Prepared


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
    request = laws.REQUEST
    other = laws.OTHER

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
    def trial(self, loaded: LoadedMethod, lm: Lm, tmp_path: Path) -> laws.Trial:
        """The method on the model, prepared on a tiny corpus when that is first needed."""
        options = build_options(loaded.method, self.options, lm)

        def prepare() -> Prepared:
            material = Records() if loaded.method.prepares_on == "cases" else Texts()
            found: Prepared = loaded.manager.hook.edit_prepare(
                lm=lm, options=options, corpus=material, checkpoint=Checkpoint(tmp_path / "state"),
                beside=(),
            )  # fmt: skip
            return found

        return laws.Trial(loaded, lm, options, prepare, self.method, self.request, self.other)

    @pytest.fixture
    def editor(self, trial: laws.Trial) -> Editor:
        """The prepared method, for tests of your own."""
        return Editor(trial.loaded, trial.lm, trial.options, trial.prepared)

    def test_law_1_name_and_defaults(self, trial: laws.Trial) -> None:
        """1: the name is the entry point's, and every option has a default."""
        laws.law_1(trial)

    def test_law_2_compute_leaves_no_trace(self, trial: laws.Trial) -> None:
        """2: no hook that computes changes weights, flags, mode or random state."""
        laws.law_2(trial)

    def test_law_3_sites_are_parameters(self, trial: laws.Trial) -> None:
        """3: located sites are parameters of the model."""
        laws.law_3(trial)

    def test_law_4_deltas_fit(self, trial: laws.Trial) -> None:
        """4: every delta belongs to a located site, has its shape, and is finite."""
        laws.law_4(trial)

    def test_law_5_same_arguments_same_update(self, trial: laws.Trial) -> None:
        """5: the same arguments and seed give the same update, to the bit."""
        laws.law_5(trial)

    def test_law_6_revert_is_exact(self, trial: laws.Trial) -> None:
        """6: apply, then revert, is exact to the bit, also when what is in between fails."""
        try:
            laws.law_6(trial)
        except laws.NotTriedError as why:
            pytest.skip(str(why))

    def test_law_7_together_as_if_alone(self, trial: laws.Trial) -> None:
        """7: updates worked out together are those worked out alone, to rounding."""
        laws.law_7(trial)
