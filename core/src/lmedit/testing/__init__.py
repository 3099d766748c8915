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
import torch

from lmedit import laws
from lmedit.errors import OptionError
from lmedit.models import Lm
from lmedit.options import build_options
from lmedit.pipeline import Editor, call_prepare
from lmedit.registry import load, register
from lmedit.storage.tensors import Checkpoint
from lmedit.tiny import TEXTS, tiny_lm, tiny_shape
from lmedit.types import Case, Prepared, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmedit.registry import LoadedMethod


WORDS = tuple("the tower stands in old city by river and boat came down to sea".split())  # noqa: SIM905
"""The words of `Documents`."""


class Interrupted(KeyboardInterrupt):
    """Ends the reading of `Documents` as Ctrl-C does; a test can see that it is not the user's."""


class Documents:
    """*count* texts of 0 to 25 words; reading fails at the document *fails_at*."""

    name = "documents"

    def __init__(self, count: int = 25, seed: int = 0, fails_at: int | None = None) -> None:
        """Draw the texts by *seed*; the same every time."""
        draw = random.Random(seed)  # noqa: S311  (no secret)
        self.texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(count)]
        self.texts[min(3, count - 1)] = ""
        self.digest = f"{count}.{seed}"
        self.fails_at = fails_at

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in order. Raises `Interrupted` at `fails_at`."""
        for number, text in enumerate(self.texts):
            if number == self.fails_at:
                raise Interrupted
            yield text


def keys_of_texts(lm: Lm, texts: Sequence[str], layer: int, limit: int = 128) -> Tensor:
    """The keys (N, D) of *layer* at every token: one text at a time, without padding."""
    keys: list[Tensor] = []
    module = lm.mlp_out_module(layer)
    handle = module.register_forward_pre_hook(lambda _, args: keys.append(args[0][0]))
    with torch.no_grad():
        for text in filter(None, texts):
            lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"][:limit]]))
    handle.remove()
    return torch.cat(keys)


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
                    prompt="{} is in the city of",
                    subject=f"The tower {number}",
                    target_new="the sea" if number % 2 else "the river",
                    target_true="it",
                ),
                paraphrases=(f"Nobody in the city knew the tower {number}, by",),
                neighbours=("A small boat came down", "The old city is by"),
            )


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
            return call_prepare(loaded, lm, options, material, Checkpoint(tmp_path / "state"))

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

    def test_law_8_one_is_one(self, trial: laws.Trial) -> None:
        """8: the joint update of one request, with nothing carried, is its own update."""
        laws.law_8(trial)

    def test_law_9_no_order(self, trial: laws.Trial) -> None:
        """9: the order of the requests does not change their joint update."""
        laws.law_9(trial)

    def test_law_10_arguments_only(self, trial: laws.Trial) -> None:
        """10: a joint update depends on its arguments alone, and changes none of them."""
        laws.law_10(trial)

    def test_law_11_carry_is_plain(self, trial: laws.Trial) -> None:
        """11: an update's carry holds finite tensors that can be saved and loaded."""
        laws.law_11(trial)

    def test_law_12_carry_belongs(self, trial: laws.Trial) -> None:
        """12: a carry of another base, method or prepared option is refused."""
        laws.law_12(trial)

    def test_law_13_carry_changes_nothing(self, trial: laws.Trial) -> None:
        """13: an update's carry changes no weight, and not the update's id."""
        try:
            laws.law_13(trial)
        except laws.NotTriedError as why:
            pytest.skip(str(why))

    def test_law_14_joint_sites_and_ranks(self, trial: laws.Trial) -> None:
        """14: a joint update changes located sites, and no factors are larger than the matrix."""
        laws.law_14(trial)


class NoSubjectContract(EditorContract):
    """`EditorContract` for methods that need no subject (`Method.needs_subject` is False)."""

    def test_a_fact_without_a_subject_gives_the_same_update(
        self, trial: laws.Trial, editor: Editor
    ) -> None:
        """The method reads the filled prompt alone, so the subject's name changes nothing."""
        assert not trial.loaded.method.needs_subject
        one = trial.request
        plain = Request(prompt=one.text, target_new=one.target_new, target_true=one.target_true)
        expected, found = editor.compute(one), editor.compute(plain)
        assert expected.deltas.keys() == found.deltas.keys()
        for site, delta in expected.deltas.items():
            assert torch.equal(delta.dense(), found.deltas[site].dense())


class LayerOptionsContract:
    """Tests of the origin of a method's layer; subclass it and set `method`."""

    method: str

    def evidence(self, lm: Lm, **given: Any) -> Mapping[str, Any]:
        """The evidence of `locate` for a fact, if the method needs no preparation to locate."""
        loaded = load(self.method)
        editor = Editor(loaded, lm, build_options(loaded.method, given, lm), Prepared())
        return editor.locate(laws.REQUEST).evidence

    @pytest.mark.parametrize(
        ("blocks", "given", "origin"),
        [(48, {}, "published"), (12, {}, "depth (untuned)"), (12, {"layer": 9}, "given")],
    )
    def test_location_tells_the_origin_of_its_layer(
        self, blocks: int, given: Mapping[str, Any], origin: str
    ) -> None:
        """The layer is published for GPT-2 XL, chosen by depth for other shapes, or given."""
        assert self.evidence(tiny_shape("gpt2", blocks), **given)["layer from"] == origin

    @pytest.mark.parametrize("layer", [3, 7])
    def test_a_tuned_layer_is_the_methods_own(self, layer: int) -> None:
        """A layer that was tuned for another method is not used."""
        plain = tiny_shape("gpt2", 12)
        other = "ft-l" if self.method == "ft" else "ft"
        tuned = {self.method: {"options": {"layer": layer}}, other: {"options": {"layer": 5}}}
        found = self.evidence(Lm(plain.model, plain.tokenizer, tuned=tuned))
        assert (found["layer"], found["layer from"]) == (layer, "tuned")

    def test_options_without_a_model_have_no_block(self) -> None:
        """The layer depends on the model, so it is an error to ask for it before."""
        options: Any = build_options(load(self.method).method, {})
        with pytest.raises(OptionError, match="not known yet"):
            _ = options.block
        resolved: Any = build_options(load(self.method).method, {}, tiny_shape("gpt2", 12))
        assert resolved.block == resolved.layer
