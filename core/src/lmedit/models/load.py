"""Load a model by name: a world's, a folder's, or the hub's (downloaded only when asked to)."""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import ModelError, UnknownNameError
from lmedit.models.lm import Lm
from lmedit.models.offload import lacks_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.types import World

WORLDS = "lmedit.worlds"
TUNED_FILE = "lmedit-tuned.json"
"""In a model folder: options measured for that model, by method, with the evidence."""


def worlds() -> dict[str, World]:
    """The installed worlds by name: models that ship with records and text."""
    return {point.name: point.load() for point in entry_points(group=WORLDS)}


SPREAD = "map"
"""As a device: all there are, filled up by accelerate in turn, memory and disk behind them."""


def load_lm(name: str, *, device: str = "auto", dtype: str = "auto", download: bool = False) -> Lm:
    """Load the model *name*: a world, a folder, or a hub id (from the cache unless *download*).

    *dtype* is auto (the checkpoint's), float32, bfloat16, float16 or float64; *device* a name of
    torch's, or ``map``: spread over all devices by accelerate. Raises `ModelError` with culprit
    and remedy, also where a matrix could not be edited in place, as of a quantised model. Remote
    code is never run.
    """
    world = worlds().get(name)
    folder = world.model if world else Path(name)
    source = str(folder) if folder.exists() else name
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"no model folder {name!r}; give a folder with config.json, or a hub id")
    again = partial(_placed, source, dtype, device, local=folder.exists() or not download)
    model, tokenizer = again()
    return Lm(
        model, tokenizer, name=name, tuned=_tuned(folder), folder=folder,
        text=world.text if world else None, training=world.training if world else None,
        again=lambda: again()[0],
    )  # fmt: skip


def outline(name: str, *, dtype: str = "auto", download: bool = False) -> Lm:
    """The model *name* without its weights: parts and shapes from the config alone.

    It lies on the meta device and cannot be run. Raises `ModelError`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    world = worlds().get(name)
    folder = world.model if world else Path(name)
    source = str(folder) if folder.exists() else name
    local = folder.exists() or not download
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        chosen = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=chosen)
        model.tie_weights()
    except Exception as error:
        raise ModelError(_complaint(source, error, local=local)) from error
    return Lm(model, None, name=name, tuned=_tuned(folder), folder=folder)


def _placed(source: str, dtype: str, device: str, *, local: bool) -> tuple[Any, Any]:
    """Model and tokenizer; the model is where it computes, and takes no gradients."""
    model, tokenizer = _load(source, dtype, device, local=local)
    model.requires_grad_(False)
    if device != SPREAD:
        model.to(device_of(device))
    elif lacks_weights(model):
        raise ModelError(
            f"{source!r} does not fit: a part of it was left out where it cannot be edited; give "
            "--dtype bfloat16, or --device cpu"
        )
    return model, tokenizer


def _load(source: str, dtype: str, device: str, *, local: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    if device == SPREAD and find_spec("accelerate") is None:
        raise ModelError("--device map needs accelerate; pip install 'lmedit[sharded]'")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        _check_unquantised(source, config)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch_dtype, local_files_only=local, use_safetensors=True,
            device_map="auto" if device == SPREAD else None,
        )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_complaint(source, error, local=local)) from error
    if not tokenizer("a").input_ids:  # transformers makes an empty tokenizer out of no files
        raise ModelError(f"model folder {source!r} has no tokenizer.json; write it again")
    return model, tokenizer


def _check_unquantised(source: str, config: Any) -> None:
    """Refuse a checkpoint whose matrices are no plain numbers."""
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        how = dict(quantised if isinstance(quantised, dict) else vars(quantised))
        raise ModelError(
            f"{source!r} is quantised ({how.get('quant_method', 'unknown method')}): its matrices "
            "cannot be edited in place; load the model it was made from, in bfloat16 if need be"
        )


def _complaint(source: str, error: Exception, *, local: bool) -> str:
    if Path(source).exists():
        first = str(error).strip().splitlines()
        what = first[0] if first else type(error).__name__
        return f"model folder {source!r} is damaged or incomplete ({what}); write it again"
    if local:
        return (
            f"no world, folder or downloaded model {source!r}; add --download to fetch it from "
            f"the hub, or use one of: {', '.join(sorted(worlds())) or 'no world installed'}"
        )
    return f"cannot download {source!r}: {type(error).__name__}; check the name and the network"


def device_of(device: str) -> str:
    """The device called so; auto: cuda, mps or cpu. Raises `ModelError`."""
    if device == SPREAD:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "auto":
        try:
            return str(torch.empty(0, device=device).device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"no device {device!r} here; use cpu, or cuda or mps") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _tuned(folder: Path) -> Mapping[str, Any]:
    file = folder / TUNED_FILE
    if not file.is_file():
        return {}
    try:
        tuned: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}); delete it or tune again") from error
    return tuned


def world(name: str) -> World:
    """The world *name*; raises `UnknownNameError`."""
    known = worlds()
    if name not in known:
        raise UnknownNameError("world", name, known)
    return known[name]
