"""Export edits as an adapter that is kept only if peft gives the edited model with it.

The proof has two parts. Each matrix that peft changes must gain the adapter's change. The logits of
the edited model and of peft's model may differ by rounding only.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from lmedit.edits.ledger import applied, sum_of
from lmedit.edits.lora import Adapter, adapter_of, write_adapter
from lmedit.errors import ArtifactError
from lmedit.guards.untouched import note_state, put_back
from lmedit.models.packings import quiet_packages
from lmedit.types import LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Site

TEXTS = ("The", "In the morning, nobody in the city knew", "1, 2, 3")
"""The texts on which both models are compared."""
TOLERANCE = 1e-3
"""Largest difference of logits, as a share of the largest logit (or of 1, if that is more)."""
ROUNDINGS = 16
"""In half precision: the tolerance in roundings of the largest logit, if more than `TOLERANCE`."""
SAME = 1e-3
"""Largest relative difference (Frobenius) of a matrix's change in peft from the adapter's."""


@dataclass(frozen=True)
class Exported:
    """A proven adapter, and the largest difference of its logits from those of the whole edit."""

    adapter: Adapter
    difference: float


def export_adapter(
    lm: Lm,
    updates: Sequence[Update],
    folder: Path,
    facts: Mapping[str, Any],
    rank: int | None = None,
    finish: Callable[[Path, float], object] = lambda _, __: None,
) -> Exported:
    """Write the sum of *updates* to *folder* as an adapter, after peft has proven it.

    *facts* (JSON) are stored with it. A *rank* cuts dense changes; then the proof is about the cut
    changes. *finish* receives the folder and the largest difference of logits before the folder
    takes its place; it may add files. If the proof fails, nothing is written, and an adapter that
    was in *folder* stays. Raises `ArtifactError`.
    """
    check_peft()
    adapter = adapter_of(updates, rank)
    found: list[float] = []

    def check(place: Path) -> None:
        found.append(check_adapter(lm, adapter, place))
        if adapter.lost:
            found.append(prove_adapter(lm, updates, place))
        finish(place, found[-1])

    write_adapter(lm, adapter, folder, facts, check)
    return Exported(adapter, found[-1])


def check_peft() -> None:
    """Raise `ArtifactError` if peft is not installed; peft loads the adapters for the check."""
    if find_spec("peft") is None:
        raise ArtifactError("lmedit checks adapters with peft; pip install 'lmedit[adapters]'")


def check_import(lm: Lm, update: Update, folder: Path) -> bool:
    """Compare *update*, read from the adapter in *folder*, with peft; False if it is not installed.

    Raises `ArtifactError` as `check_adapter` does.
    """
    if find_spec("peft") is None:
        return False
    low = {site: delta for site, delta in update.deltas.items() if isinstance(delta, LowRank)}
    check_adapter(lm, Adapter(low, 0.0), folder)
    return True


def check_adapter(lm: Lm, adapter: Adapter, folder: Path) -> float:
    """The largest difference of logits between *adapter* in *lm* and peft's model of *folder*.

    Afterwards *lm* is as before. Raises `ArtifactError` if peft cannot load the folder, changes
    other matrices or changes them otherwise, or if the logits differ by more than rounding.
    """
    logits = _logits_with(lm, Update(adapter.factors))
    difference = _difference(lm, logits, folder, adapter.factors)
    eps = torch.finfo(lm.model.get_input_embeddings().weight.dtype).eps
    largest = max(float(each.abs().max()) for each in logits)
    allowed = max(TOLERANCE, ROUNDINGS * eps) * max(1.0, largest)
    if not difference <= allowed:  # not a number is no proof either
        raise ArtifactError(
            f"with this adapter peft does not give the edited {lm.name}: logits differ by "
            f"{difference:.2g}, more than {allowed:.2g}; nothing is kept, use lmedit apply"
        )
    return difference


def prove_adapter(lm: Lm, updates: Sequence[Update], folder: Path) -> float:
    """Largest difference of logits between *lm* with *updates* and the adapter that peft loads.

    Afterwards *lm* is as before. Raises `ArtifactError` if peft is not installed, or fails.
    """
    check_peft()
    return _difference(lm, _logits_with(lm, sum_of(updates)), folder)


def _logits_with(lm: Lm, update: Update) -> list[Tensor]:
    """The logits of all texts in float32, with *update* in the weights."""
    with torch.no_grad(), applied(lm, update):
        return [lm.logits(lm.batch([lm.encode(text)])).float() for text in TEXTS]


def _difference(
    lm: Lm, expected: Sequence[Tensor], folder: Path, factors: Mapping[Site, LowRank] | None = None
) -> float:
    """The largest difference of peft's logits from *expected*; checks its *factors*, if given."""
    try:
        with _wrapped(lm, folder) as model:
            if factors is not None:
                _check_changes(model, factors)
            rows = (lm.batch([lm.encode(text)]).ids for text in TEXTS)
            found = [model(input_ids=ids).logits.float() for ids in rows]
    except ArtifactError:
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"peft cannot use this adapter for {lm.name} ({why}); nothing is kept, use lmedit apply"
        ) from error
    both = zip(expected, found, strict=True)
    return max((float((a - b).abs().max()) for a, b in both), default=0.0)


@contextmanager
def _wrapped(lm: Lm, folder: Path) -> Iterator[Any]:
    """The model of *lm* with the adapter in *folder*, as peft loads it; plain again afterwards."""
    with quiet_packages():  # peft imports those of quantised models
        from peft import PeftModel

    before = note_state(lm.model)
    with quiet_packages(), torch.no_grad():  # peft warns about a future change of transformers
        try:
            yield PeftModel.from_pretrained(lm.model, folder)
        finally:
            put_back(lm.model, before)


def _check_changes(model: Any, factors: Mapping[Site, LowRank]) -> None:
    """Raise `ArtifactError` unless *model* of peft changes the matrices of *factors* like them."""
    wrapped = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if getattr(module, "lora_A", None)
    }
    wanted = {site.parameter.removesuffix(".weight"): site for site in factors}
    if wrapped.keys() != wanted.keys():
        others = sorted(wrapped.keys() ^ wanted.keys())
        raise ArtifactError(
            f"peft does not change the same matrices as this adapter ({others[0]}); nothing is "
            "kept, use lmedit apply"
        )
    for name, site in wanted.items():
        change = factors[site].dense()
        theirs = _change_in(wrapped[name]).to(change)
        ours = change.T if site.transposed else change
        if theirs.shape != ours.shape or not (theirs - ours).norm() <= SAME * ours.norm():
            raise ArtifactError(
                f"peft does not change {name} as this adapter does; nothing is kept, use lmedit "
                "apply"
            )


def _change_in(module: Any) -> Tensor:
    """The change (d_out, d_in) that peft's *module* adds to its matrix."""
    if hasattr(module, "get_delta_weight"):
        change: Tensor = module.get_delta_weight("default")
        return change
    left, right = (getattr(module, name)["default"].weight for name in ("lora_B", "lora_A"))
    product: Tensor = left @ right * module.scaling["default"]  # peft merges no packed matrix
    return product
