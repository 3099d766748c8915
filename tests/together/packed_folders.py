"""Folders of packed 4-bit and 8-bit matrices, made here without a package; checks of such models.

Each number of a group is rounded to the nearest step. The layouts are those that GPTQ, AWQ and
compressed-tensors document.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from lmedit import editor
from lmedit.edits.ledger import applied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmedit import Lm, Request

GROUP = 32
"""Numbers of a row that share a step."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The order in which AWQ lays eight numbers into one."""


def _packed(numbers: Tensor, order: Sequence[int] = range(8)) -> Tensor:
    """Eight numbers of 4 bits in one of 32, along the last dimension."""
    eights = numbers.long().unflatten(-1, (-1, 8))
    whole = sum(eights[..., of] << 4 * at for at, of in enumerate(order))
    assert isinstance(whole, torch.Tensor)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def _with_zero(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers 0 to 15 (out, in), and for each group the number that means 0, and the step."""
    groups = matrix.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    step = ((high - low) / 15).half()
    zero = (-low / step).round().clamp(0, 15)
    numbers = (groups / step[..., None] + zero[..., None]).round().clamp(0, 15)
    return numbers.flatten(1), zero, step


def _gptq(matrix: Tensor) -> dict[str, Tensor]:
    numbers, zero, step = _with_zero(matrix)
    return {
        "qweight": _packed(numbers).T,
        "qzeros": _packed(zero.T.long() - 1 & 15),
        "scales": step.T,
        "g_idx": (torch.arange(matrix.shape[1]) // GROUP).int(),
    }


def _awq(matrix: Tensor) -> dict[str, Tensor]:
    numbers, zero, step = _with_zero(matrix)
    return {
        "qweight": _packed(numbers.T, AWQ_ORDER),
        "qzeros": _packed(zero.T, AWQ_ORDER),
        "scales": step.T,
    }


def _w4a16(matrix: Tensor) -> dict[str, Tensor]:
    groups = matrix.unflatten(1, (-1, GROUP))
    step = groups.abs().amax(-1) / 7.5
    numbers = (groups / step[..., None]).round().clamp(-8, 7).flatten(1) + 8
    shape = torch.tensor(matrix.shape)
    return {"weight_packed": _packed(numbers), "weight_scale": step, "weight_shape": shape}


def _w8a8(matrix: Tensor) -> dict[str, Tensor]:
    step = matrix.abs().amax(1, keepdim=True) / 127
    return {"weight": (matrix / step).round().to(torch.int8), "weight_scale": step}


def _compressed(form: str, **groups: object) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **groups}},
    }


_INT = {"type": "int", "symmetric": True}
_ROUNDED_INPUT = {"num_bits": 8, "strategy": "token", "dynamic": True, **_INT}
_4_BITS = {"bits": 4, "group_size": GROUP}
FORMATS: Mapping[str, tuple[Callable[[Tensor], dict[str, Tensor]], Mapping[str, object]]] = (
    MappingProxyType(
        {
            "gptq": (_gptq, {"quant_method": "gptq", "desc_act": False, "sym": False, **_4_BITS}),
            "awq": (
                _awq,
                {"quant_method": "awq", "zero_point": True, "version": "gemm", **_4_BITS},
            ),
            "compressed-tensors, w4a16": (
                _w4a16,
                _compressed(
                    "pack-quantized",
                    weights={"num_bits": 4, "strategy": "group", "group_size": GROUP, **_INT},
                ),
            ),
            "compressed-tensors, w8a8": (
                _w8a8,
                _compressed(
                    "int-quantized",
                    weights={"num_bits": 8, "strategy": "channel", **_INT},
                    input_activations=_ROUNDED_INPUT,
                ),
            ),
        }
    )
)
"""By format: how a matrix (out, in) is packed, and the entry of config.json."""


def pack_folder(source: Path, target: Path, form: str) -> Path:
    """Write the model of *source* to *target*, with every matrix ``*_proj`` packed as *form*."""
    pack, entry = FORMATS[form]
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            (target / path.name).write_bytes(path.read_bytes())
    tensors: dict[str, Tensor] = {}
    for name, values in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = values
            continue
        module = name.removesuffix("weight")
        packed = {f"{module}{key}": part for key, part in pack(values.float()).items()}
        tensors.update({key: part.contiguous() for key, part in packed.items()})
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = dict(entry)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def logits(model: Any, ids: Tensor) -> Tensor:
    """The logits of *model* for *ids*, without a gradient."""
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def check_methods_compute(lm: Lm, fact: Request) -> None:
    """Edits of five methods change the answer in their block, and nothing after it."""
    for name in ("ft", "ft-l", "kn", "lora", "ultraedit"):
        update = editor(name, lm).compute(fact)
        before = lm.next_probabilities(fact.text)
        with applied(lm, update):
            assert not torch.equal(lm.next_probabilities(fact.text), before)
        assert torch.equal(lm.next_probabilities(fact.text), before)
