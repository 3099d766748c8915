"""Read all weights of a checkpoint. transformers would fill missing tensors at random."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import ModelError
from lmedit.models import offload

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

INNER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
"""Names that torch.compile, FSDP, checkpointing and Lightning put before wrapped parts."""
OUTER = r"(?:module\.|state_dict\.|base_model\.model\.|model\.(?=model\.|transformer\.|lm_head\.))"
"""Prefixes that DataParallel, training scripts, peft and Lightning put before all names."""
OUTERS = rf"^(?:{INNER}|{OUTER})+"
WRAPPERS = rf"{OUTERS}|{INNER}"
SHOWN = 3


def read_weights(source: str, config: Any, notes: list[str], **how: Any) -> PreTrainedModel:
    """Load the model of *config* with the weights of *source*; *how* goes to transformers' loader.

    A wrapper's prefix is removed from tensor names if the weights are complete then; *notes*
    receives a line about it. Raises `ModelError` if tensors are missing, have another shape, or
    hold NaN or infinity.
    """
    model, info = _read(source, config, how)
    wrapped = [key for key in info["unexpected_keys"] if re.search(WRAPPERS, key)]
    if info["missing_keys"] and wrapped:
        unwrapped, found = _read(source, config, {**how, "key_mapping": {OUTERS: "", INNER: ""}})
        if not found["missing_keys"]:
            model, info = unwrapped, found
            prefixes = {found[0] for key in wrapped for found in re.finditer(WRAPPERS, key)}
            named = " and ".join(map(repr, sorted(prefixes)))
            where = "before" if all(re.match(WRAPPERS, key) for key in wrapped) else "in"
            notes.append(f"{source}: tensors are read without {named} {where} their names")
        elif len(found["missing_keys"]) < len(info["missing_keys"]):
            info = found  # refused below; these are the tensors that are truly missing
    _check_whole(source, info)
    if unread := info["unexpected_keys"]:
        notes.append(
            f"{source}: {_list_tensors(unread)} not read, since the model has no such part"
        )
    check_finite(source, model)
    return model


@torch.no_grad()
def check_finite(source: str, model: PreTrainedModel) -> None:
    """Raise `ModelError` if a parameter of *model* holds NaN or infinity, and name the parameter.

    Every answer of such a model would be NaN. *source* is its name for the user.
    """
    bad = {}
    for name in sorted(offload.names(model), key=_natural):
        values = offload.fetch(model, name)
        if not values.is_meta and values.is_floating_point() and not _is_finite(values):
            bad[name] = int((~values.isfinite()).sum())
    if not bad:
        return
    first, count = next(iter(bad.items()))
    values = offload.fetch(model, first)
    kind = str(values.dtype).removeprefix("torch.")
    wide = ", or give --dtype bfloat16" if values.dtype == torch.float16 else ""
    raise ModelError(
        f"{source!r}: {count} of {values.numel()} values of {first} are NaN or infinite in {kind} "
        f"({len(bad)} such tensor{'' if len(bad) == 1 else 's'}); write the model again{wide}"
    )


def _is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; both show in the smallest and the largest value."""
    return not values.numel() or all(bool(each.isfinite()) for each in values.aminmax())


def auto_class(config: Any) -> Any:
    """The class of transformers that loads models of *config*, whole: also one that reads images.

    For a few configs the causal class is only the text decoder of the model, and its weights would
    be a part. Then the class of the whole model is taken, unless the config names the causal one.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text_alone = (
        causal.__name__ in (config.architectures or []) or config.get_text_config() is config
    )
    return AutoModelForCausalLM if text_alone else AutoModelForImageTextToText


def _read(
    source: str, config: Any, how: Mapping[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    found: Any = auto_class(config).from_pretrained(
        source,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=False,
        **how,
    )
    return found


def _check_whole(source: str, info: Mapping[str, Any]) -> None:
    """Raise `ModelError` if a tensor is missing or its shape differs from the config's."""
    if wrong := sorted(info["mismatched_keys"]):
        name, stored, expected = wrong[0]
        raise ModelError(
            f"{source!r}: {name} is {_shape(stored)} where its config says {_shape(expected)} "
            f"({len(wrong)} such tensors); correct config.json, or write the model again"
        )
    if missing := info["missing_keys"]:
        raise ModelError(
            f"{source!r} lacks {_list_tensors(missing)} that its config names; "
            "correct config.json, or "
            "write the model again"
        )


def _list_tensors(names: Collection[str]) -> str:
    """The number of tensors and the first few names."""
    first = ", ".join(sorted(names, key=_natural)[:SHOWN])
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'} ({first}{more})"


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _shape(sizes: Collection[int]) -> str:
    return " x ".join(map(str, sizes))
