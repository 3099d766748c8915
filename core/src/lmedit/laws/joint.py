"""The laws 8 to 14: of methods that compute one change for several requests.

A method without the hook `edit_compute_joint` obeys them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from lmedit.edits.ledger import update_digest
from lmedit.edits.patches import load_patch, save_patch
from lmedit.errors import ArtifactError
from lmedit.laws.trial import LawBrokenError, NotTriedError, close, misfits, require, unknown_sites
from lmedit.pipeline import Editor
from lmedit.types import Carried, Location, LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from lmedit.laws.trial import Trial


def law_8(trial: Trial) -> None:
    """The joint update of one request, with nothing carried, is the update of that request."""
    if not trial.joins:
        return
    _, alone = trial.raw_update()
    _, joint = trial.raw_joint([trial.request])
    require(close(joint, alone), "the joint update of one request differs from its own update")


def law_9(trial: Trial) -> None:
    """The order of the requests does not change their joint update, up to rounding."""
    if not trial.joins:
        return
    one, two, three = trial.request, trial.other, trial.third
    _, first = trial.raw_joint([one, two, three])
    _, second = trial.raw_joint([three, one, two])
    require(set(first.deltas) == set(second.deltas), "another order changes other sites")
    for site, delta in first.deltas.items():
        expected, found = delta.dense(), second.deltas[site].dense()
        apart, largest = (expected - found).abs().max(), expected.abs().max()
        most = 1e-9 if expected.dtype == torch.float64 else 1e-3
        require(
            bool(apart <= most * largest),
            f"another order changes {site.parameter!r} by {float(apart / largest):.1e}",
        )


def law_10(trial: Trial) -> None:
    """A joint update depends on its arguments alone, and changes none of them."""
    if not trial.joins:
        return
    carried = _carry_of_third(trial)
    before = [_bits(each) for each in (*carried, trial.prepared.tensors)]
    _, first = trial.raw_joint([trial.request, trial.other], carried)
    trial.raw_joint([trial.third])
    _, again = trial.raw_joint([trial.request, trial.other], carried)
    require(_same(first, again), "another joint update in between changed it")
    after = [_bits(each) for each in (*carried, trial.prepared.tensors)]
    require(before == after, "it changed what was carried, or what was prepared")


def law_11(trial: Trial) -> None:
    """An update's carry holds finite tensors; saved and loaded they give the same bits."""
    if not trial.joins:
        return
    _, update = trial.raw_joint([trial.third])
    for name, tensor in update.carry.items():
        require(
            isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) is not None,
            f"it carries a tensor under the name {name!r}",
        )
        require(isinstance(tensor, torch.Tensor), f"{name!r} in its carry is not a tensor")
        require(bool(tensor.isfinite().all()), f"{name!r} in its carry is not finite")
    if not update.carry:
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        save_patch(path, update, {})
        loaded, _ = load_patch(path)
    _, kept = trial.raw_joint([trial.request], [update.carry])
    _, read = trial.raw_joint([trial.request], [loaded.carry])
    require(_same(kept, read), "the next update differs after its carry was saved and loaded")


def law_12(trial: Trial) -> None:
    """A carry belongs to one base, one method and its prepared options; else it fails."""
    if not trial.joins:
        return
    editor = Editor(trial.loaded, trial.lm, trial.options, trial.prepared)
    named = editor.options.prepared_from()
    missing = set(type(editor.options).prepares) - set(named)
    require(not missing, f"a carry does not hold the prepared options {sorted(missing)}")
    own = editor.carry_of(trial.raw_joint([trial.third])[1])
    strange = {
        "base": replace(own, base="0" * 64),
        "method": replace(own, method="another method"),
        "options": replace(own, options={**own.options, "another option": 1}),
    }
    for what, carried in strange.items():
        require(_is_refused(editor, trial, carried), f"a carry with another {what} was accepted")


def law_13(trial: Trial) -> None:
    """An update's carry changes no weight, and not the update's id."""
    if not trial.joins:
        return
    lm, hook = trial.lm, trial.loaded.manager.hook
    locations, update = trial.raw_joint([trial.request, trial.other])
    if any(unknown_sites(lm, each) for each in locations) or misfits(lm, _union(locations), update):
        raise NotTriedError("the update breaks law 3 or 4, so it cannot be applied")
    bare = replace(update, carry={})
    require(update_digest(update) == update_digest(bare), "its id depends on what it carries")
    digests = []
    for each in (update, bare):
        applied = hook.edit_apply(lm=lm, update=each)
        digests.append(lm.weights_digest())
        hook.edit_revert(lm=lm, applied=applied)
    require(digests[0] == digests[1], "the weights depend on what it carries")


def law_14(trial: Trial) -> None:
    """A joint update changes located sites, and no change is larger than the whole matrix."""
    if not trial.joins:
        return
    locations, update = trial.raw_joint([trial.request, trial.other, trial.third])
    require(bool(update.deltas), "the joint update changes nothing")
    for reason in misfits(trial.lm, _union(locations), update):
        raise LawBrokenError(reason)
    for site, delta in update.deltas.items():
        rows, columns = delta.shape
        small = not isinstance(delta, LowRank) or (
            delta.left.shape[1] * (rows + columns) <= rows * columns
        )
        require(small, f"the factors of {site.parameter!r} hold more numbers than the matrix")


def _union(locations: Sequence[Location]) -> Location:
    return Location(tuple(dict.fromkeys(site for each in locations for site in each.sites)))


def _carry_of_third(trial: Trial) -> list[Mapping[str, Tensor]]:
    """What the update of the third request carries; empty if the method carries nothing."""
    _, update = trial.raw_joint([trial.third])
    return [update.carry] if update.carry else []


def _bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def _is_refused(editor: Editor, trial: Trial, carried: Carried) -> bool:
    try:
        editor.compute_joint([trial.request], [carried])
    except ArtifactError:
        return True
    return False


def _parts(update: Update) -> Iterator[tuple[str, Tensor]]:
    for site, delta in update.deltas.items():
        for name, tensor in delta.tensors().items():
            yield f"{site.parameter}.{name}", tensor
    for name, tensor in update.carry.items():
        yield f"carry.{name}", tensor


def _same(one: Update, other: Update) -> bool:
    """Whether two updates agree to the bit, also in what they carry."""
    first, second = dict(_parts(one)), dict(_parts(other))
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )
