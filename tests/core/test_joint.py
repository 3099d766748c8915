"""One change for several requests: the pipeline's side of it, and `as_if`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Dense, Location, LowRank, Method, Options, Prepared, Request, Update, hookimpl
from lmedit.defaults import edit_apply, edit_revert
from lmedit.edits.ledger import update_digest
from lmedit.edits.patches import load_patch, save_patch
from lmedit.errors import ArtifactError, BrokenPluginError, RequestError
from lmedit.guards.untouched import left_behind, note_state
from lmedit.options import build_options
from lmedit.pipeline import Editor
from lmedit.registry import register
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm
from lmedit.trace import as_if, captured

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

ONE = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
TWO = Request(prompt="{} came down by", subject="A small boat", target_new="the old river")


class JointOptions(Options):
    prepares = ("layer",)
    layer: int = 1


def plugin(**more: Any) -> Any:
    """A method that adds one column of ones for each request; *more* hooks win."""

    @hookimpl
    def edit_describe() -> Method:
        return Method("many", "no paper", JointOptions)

    @hookimpl
    def edit_locate(lm: Lm, options: JointOptions) -> Location:
        return Location((lm.mlp_out(options.layer),))

    @hookimpl
    def edit_compute_joint(lm: Lm, requests: Any, locations: Any, carried: Any) -> Update:
        (site,) = locations[0].sites
        rows, columns = lm.weight(site).shape
        left, right = torch.ones(rows, len(requests)), torch.ones(len(requests), columns)
        told = {"requests": len(requests), "carried": len(carried)}
        return Update({site: LowRank(left, right)}, told, {"keys": torch.ones(3)})

    hooks = {
        "edit_describe": edit_describe,
        "edit_locate": edit_locate,
        "edit_compute_joint": edit_compute_joint,
    }
    module = ModuleType("many")
    vars(module).update(hooks | more)
    return module


def editor_of(lm: Lm, **more: Any) -> Editor:
    loaded = register(plugin(**more), name="many", distribution="test", version="0")
    return Editor(loaded, lm, build_options(loaded.method, {}, lm), Prepared())


@pytest.fixture
def lm() -> Lm:
    return tiny_lm()


def test_one_change_for_all(lm: Lm) -> None:
    editor = editor_of(lm)
    update = editor.compute_joint([ONE, TWO])
    assert update.notes == {"requests": 2, "carried": 0}
    assert editor.joins


def test_a_joint_method_needs_no_compute_of_its_own(lm: Lm) -> None:
    assert editor_of(lm).compute(ONE).notes == {"requests": 1, "carried": 0}


def test_a_method_without_the_hook_is_refused(lm: Lm) -> None:
    editor = editor_of(lm)
    loaded = register(
        SimpleNamespace(edit_describe=plugin().edit_describe),
        name="many",
        distribution="test",
        version="0",
    )
    alone = replace(editor, loaded=loaded)
    assert not alone.joins
    with pytest.raises(RequestError, match="one fact at a time"):
        alone.compute_joint([ONE])


def test_no_request_is_refused(lm: Lm) -> None:
    with pytest.raises(RequestError, match="no fact to edit"):
        editor_of(lm).compute_joint([])


def test_what_is_carried_reaches_the_hook(lm: Lm) -> None:
    editor = editor_of(lm)
    first = editor.compute_joint([ONE])
    carried = editor.carry_of(first)
    assert editor.compute_joint([TWO], [carried, carried]).notes["carried"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "f" * 64}, ["base ffffffffffff", "tiny"]),
        ({"method": "rome"}, ["by rome", "by many"]),
        ({"options": {"layer": 7}}, ["layer 7", "not 1"]),
    ],
)
def test_a_strange_carry_is_refused_with_both_names(
    lm: Lm, changes: dict[str, Any], words: list[str]
) -> None:
    editor = editor_of(lm)
    own = editor.carry_of(editor.compute_joint([ONE]))
    with pytest.raises(ArtifactError) as error:
        editor.compute_joint([TWO], [replace(own, **changes)])
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("carry", "why"),
    [
        ({"keys": torch.tensor([torch.nan])}, "not finite"),
        ({"keys": 3}, "carry 'keys' as a int, not a tensor"),
        ({3: torch.ones(1)}, "tensors under names"),
        ([torch.ones(1)], "mapping"),
    ],
)
def test_a_carry_that_is_no_plain_tensors_is_refused(lm: Lm, carry: Any, why: str) -> None:
    @hookimpl
    def edit_compute_joint(lm: Lm) -> Update:
        site = lm.mlp_out(1)
        return Update({site: Dense(torch.ones(lm.weight(site).shape))}, {}, carry)

    with pytest.raises(BrokenPluginError, match=why):
        editor_of(lm, edit_compute_joint=edit_compute_joint).compute_joint([ONE])


def test_a_patch_keeps_the_carry_and_the_id_leaves_it_out(lm: Lm, tmp_path: Path) -> None:
    update = editor_of(lm).compute_joint([ONE, TWO])
    path = tmp_path / "many.safetensors"
    save_patch(path, update, {"requests": [ONE.model_dump(), TWO.model_dump()], "carried": ["a"]})
    found, facts = load_patch(path)
    assert found.carry.keys() == {"keys"}
    assert torch.equal(found.carry["keys"], update.carry["keys"])
    assert facts["carried"] == ["a"]
    assert update_digest(found) == update_digest(replace(update, carry={}))


# ---- law 15, of the core: as if is as is


def changes(lm: Lm) -> Update:
    """A low-rank change, a dense one, and one of a bias if there is one."""
    draw = torch.Generator().manual_seed(1)
    dtype = lm.working_dtype
    first, second = lm.mlp_out(1), lm.mlp_matrices(2)[0]
    rows, columns = lm.weight(first).shape
    deltas: dict[Any, Any] = {
        first: LowRank(
            torch.randn(rows, 2, generator=draw, dtype=dtype),
            torch.randn(2, columns, generator=draw, dtype=dtype),
        ),
        second: Dense(torch.randn(lm.weight(second).shape, generator=draw, dtype=dtype)),
    }
    bias = lm.mlp_out_bias(3)
    if bias is not None:
        deltas[bias] = Dense(torch.randn(lm.weight(bias).shape, generator=draw, dtype=dtype))
    return Update(deltas)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_as_if_is_as_is(family: str, dtype: torch.dtype, apart: float) -> None:
    """Of every block's output. Random blocks amplify single precision, so its bound is wide."""
    lm = tiny_family(family, dtype)
    update, marks, digest = changes(lm), note_state(lm.model), lm.weights_digest()
    batch = lm.batch([lm.encode("The tower stands in"), lm.encode("A boat")])

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad(), ExitStack() as stack:
            boxes = [stack.enter_context(captured(lm.block(n))) for n in range(lm.n_layers)]
            logits = lm.logits(batch)
        return [*(box.output for box in boxes), logits]

    plain = outputs()
    with as_if(lm, update.deltas):
        assert lm.weights_digest() == digest
        found = outputs()
    assert left_behind(marks, note_state(lm.model)) == []
    applied = edit_apply(lm, update)
    expected = outputs()
    edit_revert(lm, applied)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= apart * float(other.abs().max())
    assert float((plain[-1] - expected[-1]).abs().max()) > 1e-3


def test_as_if_refuses_a_table(lm: Lm) -> None:
    site = lm.site_of("transformer.wte")
    delta = Dense(torch.zeros(lm.weight(site).shape))
    with pytest.raises(ValueError, match="table of rows"), as_if(lm, {site: delta}):
        pass
