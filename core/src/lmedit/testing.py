"""`EditorContract`: the laws of `hookspecs.py` as pytest tests, for every author of a method.

In a plugin's tests::

    class TestContract(EditorContract):
        method = "nudge"          # or: plugin = nudge_module

Each test has its law's number and calls the law in `lmedit.laws`. The tests run on a tiny random
GPT-2, unless the class overrides `lm`. `lmedit check` tests the same laws without pytest.
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
        """Yield 60 lines of random words, the same lines every time."""
        words = " ".join(TEXTS).split()
        draw = random.Random(0)  # noqa: S311  (no secret)
        for _ in range(60):
            yield " ".join(draw.choices(words, k=12))


class Records:
    """Tiny cases for methods that are trained on cases."""

    name = "contract cases"
    digest = "contract cases"

    def __iter__(self) -> Iterator[Case]:
        """Yield 40 cases about 40 towers, each with two neighbours."""
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
    """Subclass it and set `method` or `plugin`; add your own tests below."""

    method: str | None = None
    plugin: Any = None
    options: Mapping[str, Any] = {}
    request = laws.REQUEST
    other = laws.OTHER

    @pytest.fixture
    def lm(self) -> Lm:
        """The model for the tests."""
        return tiny_lm()

    @pytest.fixture
    def loaded(self) -> LoadedMethod:
        """The method under test, in its own plugin manager."""
        if self.plugin is not None:
            return register(self.plugin, name=None, distribution="under test", version="0")
        if self.method is None:
            raise TypeError("set method, or plugin, in the test class")
        return load(self.method)

    @pytest.fixture
    def trial(self, loaded: LoadedMethod, lm: Lm, tmp_path: Path) -> laws.Trial:
        """The method on the model. It is prepared on a tiny corpus when that is first needed."""
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
        """The prepared method, for your own tests."""
        return Editor(trial.loaded, trial.lm, trial.options, trial.prepared)

    def test_law_1_name_and_defaults(self, trial: laws.Trial) -> None:
        """1: the method has the name of its entry point, and every option has a default."""
        laws.law_1(trial)

    def test_law_2_compute_leaves_no_trace(self, trial: laws.Trial) -> None:
        """2: hooks that compute do not change weights, flags, modes or random state."""
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
        """6: apply and then revert restores the weights to the bit, also after an error."""
        try:
            laws.law_6(trial)
        except laws.NotTriedError as why:
            pytest.skip(str(why))

    def test_law_7_together_as_if_alone(self, trial: laws.Trial) -> None:
        """7: updates computed together equal updates computed alone, up to rounding."""
        laws.law_7(trial)
