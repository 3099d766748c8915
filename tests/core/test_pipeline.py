"""The order of an edit: what is checked on the way, and that the model is always given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from lmedit import (
    Applied,
    Dense,
    Editor,
    Lm,
    Location,
    LowRank,
    Method,
    Options,
    Prepared,
    Request,
    Site,
    Update,
    build_options,
    prepare,
)
from lmedit.errors import (
    ArtifactError,
    BrokenPluginError,
    LmeditError,
    NotPreparedError,
    OptionError,
    RequestError,
    UnknownNameError,
)
from lmedit.pipeline import ready
from lmedit.plan import editor_for
from lmedit.preparation import prepared_path
from lmedit.registry import LoadedMethod
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., Editor]
Plugin = Callable[..., LoadedMethod]
NONSENSE = [None, "text", {}, 0, Site("transformer.wte.weight")]


def lengths(lm: Lm) -> tuple[int, int]:
    rows, columns = lm.weight(lm.mlp_out(0)).shape
    return rows, columns


# ---- locate and compute


def test_an_edit_is_located_and_computed_and_the_model_left_alone(
    editor: Make, lm: Lm, request_: Request
) -> None:
    digest = lm.weights_digest()
    update = editor().compute(request_)
    assert list(update.deltas) == [lm.mlp_out(0)]
    assert lm.weights_digest() == digest


def test_what_a_hook_returns_is_what_the_next_is_given(
    editor: Make, lm: Lm, request_: Request
) -> None:
    seen: dict[str, Any] = {}
    location = Location((lm.mlp_out(1),), {"why": "because"})

    def locate(lm: Lm, request: Request, options: Options, prepared: Prepared) -> Location:
        seen["locate"] = (lm, request, options, prepared)
        return location

    def compute(lm: Lm, request: Request, location: Location, options: Options) -> Update:
        seen["compute"] = (lm, request, location, options)
        return Update({location.sites[0]: Dense(torch.ones(*lengths(lm)))})

    made = editor(edit_locate=locate, edit_compute=compute)
    made.compute(request_)
    assert seen["locate"] == (lm, request_, made.options, made.prepared)
    assert seen["compute"] == (lm, request_, location, made.options)
    assert seen["compute"][2] is location


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize("hook", ["edit_locate", "edit_compute"])
def test_a_hook_that_returns_nonsense_is_named(
    editor: Make, request_: Request, hook: str, value: object
) -> None:
    broken = editor(**{hook: lambda: value})
    kind = {"edit_locate": "Location", "edit_compute": "Update"}[hook]
    message = rf"'nudge' of lmedit-toy: {hook} must return {kind}, not {type(value).__name__}"
    with pytest.raises(BrokenPluginError, match=message):
        broken.compute(request_)


@pytest.mark.parametrize("hook", ["edit_locate", "edit_compute"])
def test_a_hook_that_is_left_out_is_named(editor: Make, request_: Request, hook: str) -> None:
    with pytest.raises(BrokenPluginError, match=rf"{hook} must return .*, not NoneType"):
        editor(**{hook: None}).compute(request_)


@pytest.mark.parametrize(
    "parameter", ["transformer.h.9.mlp.c_proj.weight", "transformer.h.0.mlp", "", "lm_head"]
)
def test_locating_what_is_no_parameter_is_an_error(
    editor: Make, request_: Request, parameter: str
) -> None:
    broken = editor(edit_locate=lambda: Location((Site(parameter),)))
    with pytest.raises(
        BrokenPluginError, match=rf"located '{parameter}', .*not a parameter of tiny"
    ):
        broken.locate(request_)


@pytest.mark.parametrize(
    "sites",
    [("transformer.h.0.mlp.c_proj.weight",), (None,), "transformer", None, 3],
    ids=["names", "None in a tuple", "a name", "None", "a number"],
)
def test_sites_that_are_no_sites_are_an_error(editor: Make, request_: Request, sites: Any) -> None:
    broken = editor(edit_locate=lambda: Location(sites))
    with pytest.raises(BrokenPluginError, match=r"'nudge' of lmedit-toy"):
        broken.locate(request_)


def test_a_delta_of_a_site_that_was_not_located_is_an_error(
    editor: Make, lm: Lm, request_: Request
) -> None:
    other = lm.mlp_out(2)
    broken = editor(edit_compute=lambda lm: Update({other: Dense(torch.ones(*lengths(lm)))}))
    with pytest.raises(BrokenPluginError, match=rf"changes '{other.parameter}', .*not locate"):
        broken.compute(request_)


@pytest.mark.parametrize(
    "delta",
    [
        lambda rows, columns: Dense(torch.ones(columns, rows)),
        lambda rows, columns: Dense(torch.ones(1, 1)),
        lambda rows, columns: LowRank(torch.ones(rows, 1), torch.ones(1, columns - 1)),
    ],
    ids=["transposed", "one number", "too narrow"],
)
def test_a_delta_of_another_shape_names_both_shapes(
    editor: Make, lm: Lm, request_: Request, delta: Callable[[int, int], Any]
) -> None:
    change = delta(*lengths(lm))
    broken = editor(edit_compute=lambda location: Update({location.sites[0]: change}))
    with pytest.raises(BrokenPluginError) as caught:
        broken.compute(request_)
    assert f"is {change.shape}, but the matrix is {lengths(lm)}" in str(caught.value)
    assert lm.mlp_out(0).parameter in str(caught.value)


@pytest.mark.parametrize(
    "delta",
    [
        torch.ones,
        lambda rows, columns: Dense(torch.ones(rows)),
        lambda rows, columns: LowRank(torch.ones(rows), torch.ones(columns)),
        lambda rows, columns: LowRank(torch.ones(rows, 2), torch.ones(3, columns)),
        lambda rows, columns: Dense(None),
        lambda rows, columns: None,
    ],
    ids=["bare tensor", "dense vector", "vectors", "inner sizes differ", "Dense of None", "None"],
)
def test_a_delta_that_is_none_is_the_plugins_error(
    editor: Make, lm: Lm, request_: Request, delta: Callable[[int, int], Any]
) -> None:
    change = delta(*lengths(lm))
    broken = editor(edit_compute=lambda location: Update({location.sites[0]: change}))
    with pytest.raises(BrokenPluginError, match=r"'nudge' of lmedit-toy"):
        broken.compute(request_)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["dense", "left", "right"])
def test_an_update_that_is_not_finite_is_dropped_with_a_remedy(
    editor: Make, lm: Lm, request_: Request, kind: str, bad: float
) -> None:
    rows, columns = lengths(lm)
    parts = {"left": torch.ones(rows, 1), "right": torch.ones(1, columns)}
    dense = torch.ones(rows, columns)
    (dense if kind == "dense" else parts[kind])[0, 0] = bad
    change = Dense(dense) if kind == "dense" else LowRank(**parts)
    broken = editor(edit_compute=lambda location: Update({location.sites[0]: change}))
    with pytest.raises(RequestError, match=r"nudge: .*c_proj\.weight' is not finite.*try other"):
        broken.compute(request_)


def test_finite_factors_with_an_infinite_product_are_not_finite(
    editor: Make, lm: Lm, request_: Request
) -> None:
    rows, columns = lengths(lm)
    change = LowRank(torch.full((rows, 1), 1e30), torch.full((1, columns), 1e30))
    assert not change.dense().isfinite().all()
    broken = editor(edit_compute=lambda location: Update({location.sites[0]: change}))
    with pytest.raises(RequestError, match="not finite"):
        broken.compute(request_)


# ---- apply and revert


def bend(lm: Lm, location: Location) -> Update:
    """A change that the norms behind it cannot take away."""
    rows, columns = lm.weight(location.sites[0]).shape
    ramp = torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None]
    return Update({location.sites[0]: LowRank(ramp, torch.ones(1, columns, dtype=torch.float64))})


def test_an_applied_update_is_in_the_model_and_out_again(
    editor: Make, lm: Lm, request_: Request
) -> None:
    made = editor(edit_compute=bend)
    update = made.compute(request_)
    before, digest = lm.weight(lm.mlp_out(0)).clone(), lm.weights_digest()
    logits = lm.next_probabilities(request_.text)
    with made.applied(update) as applied:
        change = update.deltas[lm.mlp_out(0)].dense()
        assert torch.equal(lm.weight(lm.mlp_out(0)), before + change)
        assert not torch.equal(lm.next_probabilities(request_.text), logits)
        assert set(applied.before) == {lm.mlp_out(0)}
    assert lm.weights_digest() == digest
    assert torch.equal(lm.next_probabilities(request_.text), logits)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_inside_is_passed_on_and_the_model_given_back(
    editor: Make, lm: Lm, request_: Request, error: type[BaseException]
) -> None:
    made, digest = editor(), lm.weights_digest()
    update = made.compute(request_)
    with pytest.raises(error, match="inside"), made.applied(update):
        fail_inside(lm, digest, error)
    assert lm.weights_digest() == digest


def fail_inside(lm: Lm, digest: str, error: type[BaseException]) -> None:
    assert lm.weights_digest() != digest
    raise error("inside")


def test_what_is_done_to_edited_weights_inside_is_undone_too(
    editor: Make, lm: Lm, request_: Request
) -> None:
    made, digest = editor(), lm.weights_digest()
    with made.applied(made.compute(request_)):
        lm.weight(lm.mlp_out(0)).mul_(3)
    assert lm.weights_digest() == digest


def test_edits_may_be_nested(editor: Make, lm: Lm, request_: Request) -> None:
    made, digest = editor(), lm.weights_digest()
    update = made.compute(request_)
    with made.applied(update):
        once = lm.weights_digest()
        with made.applied(update):
            assert lm.weights_digest() not in {once, digest}
        assert lm.weights_digest() == once
    assert lm.weights_digest() == digest


class Interrupted(Dense):
    """A change whose owner presses Ctrl-C while it is added."""

    def dense(self) -> torch.Tensor:
        raise KeyboardInterrupt


def test_an_interrupt_between_two_sites_of_apply_leaves_no_half_edit(editor: Make, lm: Lm) -> None:
    ones, digest = torch.ones(*lengths(lm)), lm.weights_digest()
    update = Update({lm.mlp_out(0): Dense(ones), lm.mlp_out(1): Interrupted(ones)})
    with pytest.raises(KeyboardInterrupt), editor().applied(update):
        pytest.fail("the update was applied")
    assert lm.weights_digest() == digest


@pytest.mark.parametrize("value", ["text", {}, 0, True], ids=repr)
def test_an_apply_that_returns_nonsense_is_named(
    editor: Make, request_: Request, value: object
) -> None:
    broken = editor(edit_apply=lambda: value)
    update = broken.compute(request_)
    message = rf"edit_apply must return Applied, not {type(value).__name__}"
    with pytest.raises(BrokenPluginError, match=message), broken.applied(update):
        pytest.fail("nothing was applied")


@pytest.mark.parametrize("value", ["text", {}, 0, False, 1], ids=repr)
def test_a_revert_that_returns_nonsense_is_named(
    editor: Make, request_: Request, value: object
) -> None:
    broken = editor(edit_revert=lambda: value)
    update = broken.compute(request_)
    with pytest.raises(BrokenPluginError, match="edit_revert"), broken.applied(update):
        pass


def test_a_revert_that_does_not_revert_is_noticed(editor: Make, request_: Request) -> None:
    broken = editor(edit_revert=lambda: True)
    update = broken.compute(request_)
    with (
        pytest.raises(
            BrokenPluginError, match=r"edit_revert did not restore the weights; load the model"
        ),
        broken.applied(update),
    ):
        pass


def test_a_failed_revert_still_shows_the_error_inside(editor: Make, request_: Request) -> None:
    broken = editor(edit_revert=lambda: True)
    update = broken.compute(request_)
    with pytest.raises(BrokenPluginError) as caught, broken.applied(update):
        raise ValueError("inside")
    assert isinstance(caught.value.__context__, ValueError)


def test_apply_and_revert_of_its_own_are_used(editor: Make, lm: Lm, request_: Request) -> None:
    calls: list[str] = []

    def apply(lm: Lm, update: Update) -> Applied:
        calls.append("apply")
        (site,) = update.deltas
        before = lm.snapshot(site)
        lm.add(site, 2 * update.deltas[site].dense())
        return Applied({site: before})

    def revert(lm: Lm, applied: Applied) -> None:
        calls.append("revert, and the default too")

    made, digest = editor(edit_apply=apply, edit_revert=revert), lm.weights_digest()
    before = lm.weight(lm.mlp_out(0)).clone()
    with made.applied(made.compute(request_)):
        assert torch.equal(lm.weight(lm.mlp_out(0)), before + 0.2)
    assert calls == ["apply", "revert, and the default too"]
    assert lm.weights_digest() == digest


def test_scores_are_the_same_after_an_edit_as_before(
    editor: Make, lm: Lm, request_: Request
) -> None:
    """Apply and revert change no score: the case scores exactly as before."""
    from lmedit import Case
    from lmedit.compare.case_scores import score_cases

    case = Case(id="0", request=request_, paraphrases=("The tower is in",), neighbours=("In",))
    made, before = editor(edit_compute=bend), score_cases(lm, [case])[0]
    with made.applied(made.compute(request_)):
        assert score_cases(lm, [case])[0] != before
    assert score_cases(lm, [case])[0] == before


def test_hooks_may_take_gradients_whatever_the_callers_setting(
    editor: Make, lm: Lm, request_: Request
) -> None:
    seen = []

    def locate(lm: Lm) -> Location:
        seen.append(torch.is_grad_enabled())
        return Location((lm.mlp_out(0),))

    def compute(lm: Lm, location: Location) -> Update:
        seen.append(torch.is_grad_enabled())
        return bend(lm, location)

    with torch.no_grad():
        editor(edit_locate=locate, edit_compute=compute).compute(request_)
        assert not torch.is_grad_enabled()
    assert seen == [True, True]


# ---- prepare


class PreparedOptions(Options):
    presets: ClassVar[Any] = MappingProxyType({"large": {"size": 9}})
    prepares: ClassVar[tuple[str, ...]] = ("size",)
    size: int = 2
    step: float = 0.1


class Text:
    """A corpus of two lines."""

    def __init__(self, name: str = "two lines", digest: str = "d1") -> None:
        self.name, self.digest = name, digest

    def __iter__(self) -> Iterator[str]:
        return iter(["one", "two"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(plugin: Plugin) -> tuple[LoadedMethod, list[int]]:
    """A method that needs preparation, and the sizes it was prepared for so far."""
    calls: list[int] = []

    def prepare_(options: PreparedOptions, corpus: Text) -> Prepared:
        calls.append(options.size)
        words = len(list(corpus)) if corpus else 0
        return Prepared({"M": torch.full((options.size,), 7.0)}, {"words": words})

    def describe() -> Method:
        return Method("counted", "no paper", PreparedOptions, prepares_on="text")

    loaded = plugin("counted", edit_describe=describe, edit_prepare=prepare_)
    return loaded, calls


Counted = tuple[LoadedMethod, list[int]]


@pytest.mark.parametrize("preset", [{"size": 9}, ["large"], 9, True, "small"], ids=repr)
def test_a_preset_that_is_no_known_name_is_refused(counted: Counted, preset: object) -> None:
    with pytest.raises(UnknownNameError, match=r"counted: no preset .* among large"):
        build_options(counted[0].method, {"preset": preset})


def test_preparing_happens_once(counted: Counted, lm: Lm, cache: Path) -> None:
    loaded, calls = counted
    first = prepare(loaded, lm, PreparedOptions(), Text())
    second = prepare(loaded, lm, PreparedOptions(), Text())
    assert calls == [2]
    for made in (first, second, ready(loaded, lm, PreparedOptions(), Text())):
        assert made.prepared.tensors["M"].tolist() == [7.0, 7.0]
        assert made.prepared.facts["words"] == 2
        assert made.prepared.facts["corpus"] == "two lines"
        assert made.prepare_seconds == made.prepared.facts["seconds"] >= 0
    assert [path.parent.name for path in cache.rglob("*.safetensors")] == ["prepared"]


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"options": PreparedOptions(size=3)}, True),
        ({"options": PreparedOptions(step=0.5)}, False),
        ({"options": PreparedOptions(seed=4)}, False),
        ({"corpus": Text(digest="d2")}, True),
        ({"corpus": Text(name="renamed")}, False),
        ({"corpus": None}, True),
        ({"lm": tiny_lm(seed=1)}, True),
    ],
    ids=["size", "step", "seed", "corpus content", "corpus name", "no corpus", "model"],
)
def test_it_is_prepared_anew_when_what_it_depends_on_changed(
    counted: Counted, lm: Lm, change: dict[str, Any], anew: bool
) -> None:
    loaded, calls = counted
    given: dict[str, Any] = {"lm": lm, "options": PreparedOptions(), "corpus": Text()}
    prepare(loaded, **given)
    prepare(loaded, **(given | change))
    assert len(calls) == (2 if anew else 1)


def test_the_models_own_preparation_comes_before_those_of_other_texts(
    counted: Counted, lm: Lm, cache: Path, tmp_path: Path
) -> None:
    loaded, calls = counted
    own, options = Text("own text", "d0"), PreparedOptions()
    ship(loaded, lm, options, own, tmp_path)
    prepare(loaded, lm, options, Text("first", "d1"))
    prepare(loaded, lm, options, Text("second", "d2"))
    made = editor_for(loaded, lm, options, own, own=True)
    assert made.prepared.facts["corpus"] == "own text"
    assert len(calls) == 3


def test_one_rule_chooses_a_preparation_of_text_and_of_cases(
    plugin: Plugin, lm: Lm, cache: Path, tmp_path: Path
) -> None:
    for kind in ("text", "cases"):
        loaded = plugin(
            kind,
            edit_prepare=lambda: Prepared({"M": torch.ones(1)}),
            edit_describe=lambda kind=kind: Method(kind, "", PreparedOptions, prepares_on=kind),
        )
        options, own = PreparedOptions(), Text("own", "d0")
        given = own if kind == "text" else None
        with pytest.raises(NotPreparedError):
            ready(loaded, lm, options)
        first, second = Text("first", "d1"), Text("second", "d2")
        prepare(loaded, lm, options, first)
        assert ready(loaded, lm, options).prepared.facts["corpus"] == "first"
        prepare(loaded, lm, options, second)
        with pytest.raises(
            OptionError, match=rf"(first|second), (first|second); choose: --corpus {kind}="
        ):
            ready(loaded, lm, options)
        ship(loaded, lm, options, own, tmp_path / kind)
        for made in (ready(loaded, lm, options), editor_for(loaded, lm, options, given, own=True)):
            assert made.prepared.facts["corpus"] == "own"
        for named in (first, second, own):
            made = editor_for(loaded, lm, options, named)
            assert made.prepared.facts["corpus"] == named.name


def ship(loaded: LoadedMethod, lm: Lm, options: Options, own: Text, world: Path) -> None:
    """Prepare on *own*, and move the file to where a world ships it."""
    prepare(loaded, lm, options, own)
    stored = prepared_path(loaded, lm, options, own)
    lm.prepared = world
    world.mkdir(exist_ok=True)
    stored.rename(world / f"{loaded.name}.safetensors")


def test_another_version_of_the_method_prepares_anew(counted: Counted, lm: Lm) -> None:
    loaded, calls = counted
    prepare(loaded, lm, PreparedOptions(), None)
    newer = LoadedMethod(loaded.method, loaded.manager, loaded.distribution, "2.0")
    prepare(newer, lm, PreparedOptions(), None)
    assert len(calls) == 2


def test_not_prepared_names_the_command(counted: Counted, lm: Lm) -> None:
    with pytest.raises(NotPreparedError) as caught:
        ready(counted[0], lm, PreparedOptions(), None)
    assert "counted is not prepared" in str(caught.value)
    assert "lmedit prepare counted -m tiny --corpus " in str(caught.value)
    assert counted[1] == []


def test_a_method_that_needs_nothing_is_ready_at_once(plugin: Plugin, lm: Lm, cache: Path) -> None:
    loaded = plugin()
    options = build_options(loaded.method, {})
    for make in (prepare, ready):
        made = make(loaded, lm, options, None)
        assert (dict(made.prepared.tensors), made.prepare_seconds) == ({}, None)
    assert not cache.exists()


@pytest.mark.parametrize("value", ["text", {}, 0], ids=repr)
def test_a_prepare_that_returns_nonsense_is_named(
    plugin: Plugin, lm: Lm, cache: Path, value: object
) -> None:
    loaded = plugin(
        "counted",
        edit_prepare=lambda: value,
        edit_describe=lambda: Method("counted", "", PreparedOptions, prepares_on="text"),
    )
    with pytest.raises(BrokenPluginError, match=r"'counted'.*edit_prepare must return Prepared"):
        prepare(loaded, lm, PreparedOptions(), None)
    assert list(cache.rglob("*.safetensors")) == []


def test_a_plugin_with_the_old_name_of_the_sweep_works_and_warns(plugin: Plugin, lm: Lm) -> None:
    seen: list[object] = []

    def prepare_(beside: Sequence[Options]) -> Prepared:
        seen.append(beside)
        return Prepared()

    def describe() -> Method:
        return Method("old", "no paper", PreparedOptions, prepares_on="text")

    with pytest.warns(DeprecationWarning, match="argument `beside` is now `sweep`; rename it"):
        loaded = plugin("old", edit_describe=describe, edit_prepare=prepare_)
    sweep = [PreparedOptions(size=size) for size in (2, 3)]
    prepare(loaded, lm, sweep[0], Text(), sweep)
    assert seen == [sweep]


def test_interrupted_preparation_goes_on_where_it_was(plugin: Plugin, lm: Lm, cache: Path) -> None:
    seen: list[Any] = []

    def prepare_(checkpoint: Any) -> Prepared:
        seen.append(checkpoint.load())
        if seen[-1] is None:
            checkpoint.save({"sum": torch.ones(1)}, {"documents": 5})
            raise KeyboardInterrupt
        return Prepared({"sum": seen[-1][0]["sum"] + 1}, seen[-1][1])

    loaded = plugin(
        "counted",
        edit_prepare=prepare_,
        edit_describe=lambda: Method("counted", "", PreparedOptions, prepares_on="text"),
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(loaded, lm, PreparedOptions(), None)
    with pytest.raises(NotPreparedError):
        ready(loaded, lm, PreparedOptions(), None)
    made = prepare(loaded, lm, PreparedOptions(), None)
    assert seen[1][1] == {"documents": 5}
    assert made.prepared.tensors["sum"].tolist() == [2.0]
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".safetensors"]


def test_a_damaged_preparation_names_its_file(counted: Counted, lm: Lm) -> None:
    loaded, _ = counted
    prepare(loaded, lm, PreparedOptions(), None)
    path = prepared_path(loaded, lm, PreparedOptions(), None)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=str(path)):
        prepare(loaded, lm, PreparedOptions(), None)


def test_a_cache_that_cannot_be_written_is_a_clear_error(
    counted: Counted, lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "regular").write_text("no folder")
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "regular"))
    with pytest.raises(ArtifactError, match=r"cannot write .*regular"):
        prepare(counted[0], lm, PreparedOptions(), None)


def test_an_error_of_the_method_itself_is_passed_on(
    editor: Make, lm: Lm, request_: Request
) -> None:
    digest = lm.weights_digest()

    def fail() -> Update:
        raise LmeditError("the subject is too long")

    with pytest.raises(LmeditError, match="the subject is too long"):
        editor(edit_compute=fail).compute(request_)
    assert lm.weights_digest() == digest
