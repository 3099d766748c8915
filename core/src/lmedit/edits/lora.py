"""Write edits as LoRA adapters in peft's layout, and read adapters as edits.

An adapter adds ``scale * B A`` to a matrix, B (d_out, r) and A (r, d_in). These are the factors of
a low-rank change, with scale 1. Zeros fill up all ranks to one r. Modules are named by their whole
paths. A change that LoRA cannot express is refused, or cut to a rank. A cut returns the lost share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lmedit.edits.ledger import check_fits
from lmedit.edits.patches import NUMBERS
from lmedit.errors import ArtifactError
from lmedit.storage.atomic import replacing_folder
from lmedit.storage.json_files import read_json, write_entries, write_json
from lmedit.types import LowRank, Site, Update, first_complaint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Delta

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROVENANCE = "lmedit_edit.json"
NOT_PLAIN = (
    "use_dora",
    "alpha_pattern",
    "rank_pattern",
    "modules_to_save",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
"""Values of peft's configuration that change what an adapter adds, or where."""
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """Factors by site, float32: B (d_out, r) and A (r, d_in); the largest lost share."""

    factors: Mapping[Site, LowRank]
    lost: float

    @property
    def rank(self) -> int:
        """r, the largest rank of all sites."""
        return max(change.right.shape[0] for change in self.factors.values())


def adapter_of(updates: Iterable[Update], rank: int | None = None) -> Adapter:
    """The sum of *updates* as one adapter; an SVD cuts a dense change to *rank*.

    Raises `ArtifactError` for a change that LoRA cannot express: a bias, or a dense change without
    *rank*.
    """
    changes: dict[Site, list[Delta]] = {}
    for update in updates:
        for site, delta in update.deltas.items():
            changes.setdefault(site, []).append(delta)
    factors, lost = {}, 0.0
    for site, deltas in changes.items():
        if site.index is not None:
            raise ArtifactError(
                f"the edit changes one expert's matrix ({site.name}), but an adapter of peft "
                "changes those of all experts; use lmedit apply"
            )
        if not site.parameter.endswith(".weight"):
            raise ArtifactError(
                f"the edit changes {site.parameter}, but LoRA changes only matrices; make it with "
                "-o bias false, or use lmedit apply"
            )
        if all(isinstance(delta, LowRank) for delta in deltas):
            left = torch.cat([d.left.float().cpu() for d in deltas if isinstance(d, LowRank)], 1)
            right = torch.cat([d.right.float().cpu() for d in deltas if isinstance(d, LowRank)])
            factors[site] = LowRank(left, right)
            continue
        if rank is None:
            raise ArtifactError(
                f"the edit of {site.parameter} is dense, but LoRA has a low rank; give --rank N to "
                "cut it, or use lmedit apply (if the model is not quantised)"
            )
        total = torch.stack([delta.dense().double().cpu() for delta in deltas]).sum(0)
        factors[site], share = _truncate(total, rank)
        lost = max(lost, share)
    return Adapter(factors, lost)


def _truncate(matrix: Tensor, rank: int) -> tuple[LowRank, float]:
    """The nearest matrix of *rank*, and the share of the squared norm that is lost."""
    U, s, Vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    kept = LowRank((U[:, :rank] * root).float(), (root[:, None] * Vt[:rank]).float())
    return kept, float(s[rank:].square().sum() / s.square().sum())


PLAIN_LORA = MappingProxyType(
    {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
)
"""What peft's configuration says of every adapter that lmedit writes."""


def check_adapter_place(folder: Path) -> None:
    """Raise `ArtifactError` if *folder* exists and is not an adapter of lmedit.

    Call it before long work.
    """
    if folder.exists() and not (folder / PROVENANCE).is_file():
        raise ArtifactError(
            f"{folder} exists and is not an adapter of lmedit; choose another place"
        )


def write_adapter(
    lm: Lm,
    adapter: Adapter,
    folder: Path,
    facts: Mapping[str, Any],
    check: Callable[[Path], object] = lambda _: None,
) -> None:
    """Write *adapter* to *folder* in peft's layout, together with *facts* (JSON).

    *check* receives the finished folder before it takes its place; if it raises, nothing is kept.
    Raises `ArtifactError` if *folder* exists and is not an adapter of lmedit.
    """
    check_adapter_place(folder)
    r = adapter.rank
    tensors, modules = {}, []
    for site, change in adapter.factors.items():
        module = site.parameter.removesuffix(".weight")
        modules.append(module)
        missing = r - change.right.shape[0]
        tensors[f"{PREFIX}{module}{A}"] = torch.nn.functional.pad(change.right, (0, 0, 0, missing))
        tensors[f"{PREFIX}{module}{B}"] = torch.nn.functional.pad(change.left, (0, missing))
    config = {
        **PLAIN_LORA,
        "base_model_name_or_path": lm.name,
        "r": r,
        "lora_alpha": r,
        "fan_in_fan_out": all(site.transposed for site in adapter.factors),
        "target_modules": sorted(modules),
    }
    with replacing_folder(folder) as place:
        save_file(
            {n: t.contiguous() for n, t in tensors.items()},
            place / WEIGHTS,
            metadata={"format": "pt"},
        )
        write_json(place / CONFIG, config)
        write_entries(place / PROVENANCE, facts)
        check(place)


def read_adapter(lm: Lm, folder: Path) -> Update:
    """Read the adapter in *folder* as an update of *lm*.

    Raises `ArtifactError` if it is damaged, does not fit, or is not plain LoRA.
    """
    config, shapes = _read(folder)
    for name in NOT_PLAIN:
        if config.get(name):
            raise ArtifactError(
                f"{folder} uses {name}, which is not plain LoRA; merge it with peft"
            )
    if config.get("bias", "none") != "none":
        raise ArtifactError(f"{folder} changes biases, which is not plain LoRA; merge it with peft")
    r, alpha = config["r"], float(config["lora_alpha"])
    sites = _sites(lm, folder, shapes, r)
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    tensors = load_file(folder / WEIGHTS)
    deltas = {
        site: LowRank(scale * tensors[left].float(), tensors[right].float())
        for site, (left, right) in sites.items()
    }
    update = Update(deltas, {"adapter": folder.name})
    check_fits(lm, update)
    return update


def _sites(
    lm: Lm, folder: Path, shapes: Mapping[str, tuple[int, ...]], r: int
) -> dict[Site, tuple[str, str]]:
    """The sites that the tensors of *shapes* change, and the names of B and A; all of rank *r*."""
    sites = {}
    for name in shapes:
        module = name.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
        pair = f"{PREFIX}{module}{B}", f"{PREFIX}{module}{A}"
        if name not in pair or f"{module}.weight" not in lm.parameters:
            raise ArtifactError(f"{folder} changes {module}, which {lm.name} does not have")
        site = lm.site_of(module)
        rows, columns = lm.weight(site).shape
        if [shapes.get(each) for each in pair] != [(rows, r), (r, columns)]:
            raise ArtifactError(
                f"{folder} has no matrices of {rows} x {r} and {r} x {columns} for {module}; it "
                "belongs to another model"
            )
        sites[site] = pair
    return sites


class _Config(BaseModel):
    """The values in every LoRA configuration of peft."""

    model_config = ConfigDict(strict=True)

    peft_type: Literal["LORA"]
    r: int = Field(gt=0)
    lora_alpha: float = Field(allow_inf_nan=False)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The configuration, and the shapes of the tensors."""
    try:
        config = read_json(folder / CONFIG)
        _Config.model_validate(config)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            if not {view.get_dtype() for view in found.values()} <= set(NUMBERS.values()):
                raise ValueError("its tensors are not plain numbers")
            shapes = {name: tuple(view.get_shape()) for name, view in found.items()}
    except ValidationError as error:
        what = f"{folder} is not a LoRA adapter of peft ({first_complaint(error)})"
        raise ArtifactError(what) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder} is not a LoRA adapter of peft ({error})") from error
    return config, shapes
