"""Reasons why a checkpoint cannot be loaded, each with its remedy.

An error says "damaged" only for damaged or missing files. For everything else it names the
unsupported feature.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lmedit.errors import ModelError
from lmedit.models.config_values import check_values
from lmedit.models.quantised import check_method

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PLAIN = ("F64", "F32", "F16", "BF16")
"""The number types that can be edited, by their names in safetensors."""
DAMAGE = (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError)


FOREIGN = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "*.onnx": "ONNX",
    "*.tflite": "TensorFlow Lite",
    "*.mlpackage": "Core ML",
    "rust_model.ot": "rust-bert",
}
"""Files of weights for other programs, and the programs."""
ORIGINAL = ("params.json", "consolidated*")
"""Files of checkpoints in the layout of their authors, as Llama's and Mistral's."""


def check_folder(folder: Path) -> None:
    """Raise `ModelError` if *folder* contains an adapter, only GGUF files, or no config."""
    where, names = str(folder), {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names:
        raise ModelError(
            f"{where!r} is an adapter, not a model; convert it to a patch of its base: "
            f"lmedit import {folder} -m BASE -O edit.safetensors"
        )
    if "config.json" in names:
        return
    if files := sorted(name for name in names if name.endswith(".gguf")):
        what = f"folder {where!r} holds a GGUF file and no config.json"
        raise ModelError(f"{what}; name the file: -m {folder / files[0]}")
    raise ModelError(_no_model(folder) or damage_line(where, "it has no config.json"))


def _no_model(folder: Path) -> str | None:
    """The line for a *folder* without config.json that is something else; None if it is not."""
    where = repr(str(folder))
    if (folder / "model_index.json").is_file():
        return (
            f"{where} is a pipeline of diffusers, which makes images or sound; lmedit edits "
            "decoders of text, choose one"
        )
    if inner := sorted(folder.glob("*/config.json")):
        return f"{where} holds no model itself; name the folder in it: -m {inner[-1].parent}"
    if _first(folder, *ORIGINAL):
        return (
            f"{where} has the layout of the model's authors, not of transformers; get the model "
            "in the layout of transformers (config.json and model.safetensors)"
        )
    found = _first(folder, *FOREIGN, *(f"*{ending}" for ending in PICKLED))
    if found is not None:
        return f"{where} holds {found} and no config.json; get the whole model folder"
    return None


def _first(folder: Path, *patterns: str) -> str | None:
    """The name of the first file of *folder* that fits one of *patterns*."""
    found = (path.name for pattern in patterns for path in sorted(folder.glob(pattern)))
    return next(found, None)


def check_file(path: Path) -> None:
    """Raise `ModelError` if *path* is a file; a model is a folder."""
    if not path.is_file():
        return
    if path.name == "config.json" or path.suffix == ".safetensors":
        what = f"{str(path)!r} is one file; give the folder of the model"
        raise ModelError(f"{what}: -m {path.parent} (lmedit apply puts an edit into a model)")
    if path.suffix in PICKLED:
        what = f"{str(path)!r} is a file of pickled weights, which lmedit never opens"
        raise ModelError(f"{what}; give a folder with config.json and model.safetensors")
    raise ModelError(f"{str(path)!r} is a file; give a model folder, or a GGUF file (.gguf)")


def check_weights(folder: Path, remedy: str, *, packed: bool = False) -> None:
    """Raise `ModelError` if *folder* contains no safetensors, or matrices that are not floats.

    The matrices may be *packed*, if config.json names a quantisation that lmedit reads.
    """
    where, names = repr(str(folder)), {path.name for path in folder.iterdir()}
    if names & set(WEIGHTS):
        if not packed:
            _check_floats(folder)
        return
    if files := sorted(name for name in names if name.endswith(PICKLED)):
        raise ModelError(
            f"{where} has only pickled weights ({files[0]}), which lmedit never opens. If you "
            "trust them, write safetensors in Python: from transformers import "
            f"AutoModelForCausalLM as M; M.from_pretrained({where}).save_pretrained({where})"
        )
    for pattern, program in FOREIGN.items():
        if found := _first(folder, pattern):
            raise ModelError(
                f"{where} has weights for {program} ({found}), which lmedit does not read; get "
                "the model with model.safetensors"
            )
    if found := _first(folder, "consolidated*.safetensors"):
        raise ModelError(
            f"{where} has weights in the layout of the model's authors ({found}); get the model "
            "in the layout of transformers (model.safetensors)"
        )
    if found := _first(folder, "*.safetensors"):
        raise ModelError(
            f"{where} has {found}, and transformers reads model.safetensors; if it is the whole "
            "model, rename it"
        )
    raise ModelError(damage_line(str(folder), "it has no model.safetensors", remedy))


def _check_floats(folder: Path) -> None:
    """Raise `ModelError` if a matrix in *folder* is stored as whole numbers or in 8 bits."""
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return  # who reads the weights says so
        for name, kind in types.items():
            if name.endswith("weight") and kind not in PLAIN:
                raise ModelError(
                    f"{str(folder)!r}: {name} is stored as {kind}, so it is quantised and cannot "
                    "be edited; load the model that it was made from"
                )


def check_kind(name: str, values: Mapping[str, Any]) -> None:
    """Raise `ModelError` if config.json (*values*) describes no decoder, or needs own code."""
    from transformers import CONFIG_MAPPING, __version__

    if not isinstance(values, dict):
        raise ModelError(damage_line(name, "its config.json holds no JSON object"))
    check_values(name, values)
    kind = values.get("model_type")
    if kind is None:
        return  # transformers may recognise it by its name
    if kind in CONFIG_MAPPING:
        check_class(name, CONFIG_MAPPING[kind], values)
    elif "auto_map" in values:
        raise ModelError(own_code(name))
    else:
        raise ModelError(
            f"{name!r} is of the model type {kind!r}, which transformers {__version__} does not "
            "know; update transformers, or choose another model"
        )


def check_class(name: str, config: type, values: Mapping[str, Any]) -> None:
    """Raise `ModelError` if transformers has no causal language model for the class *config*.

    *values* is the content of config.json.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    kind = values.get("model_type")
    decodes = (
        config in MODEL_FOR_CAUSAL_LM_MAPPING or config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    whole = None if _names_decoder(values) else _no_decoder(name, config, values)
    if decodes and whole is not None:
        raise ModelError(whole)
    if decodes:
        return
    if "AutoModelForCausalLM" in (values.get("auto_map") or {}):
        raise ModelError(own_code(name))
    if "text_config" in values:
        raise ModelError(
            f"{name!r} ({kind}) reads more than text, and transformers has no class that lets it "
            "write text; write its language model to a folder of its own, and give that"
        )
    if config in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or values.get("is_encoder_decoder"):
        what = f"{name!r} ({kind}) has an encoder and a decoder"
    else:
        what = f"{name!r} ({kind}) is not a causal language model"
    raise ModelError(f"{what}; lmedit edits decoders that read from left to right, choose one")


def _names_decoder(values: Mapping[str, Any]) -> bool:
    """Whether config.json (*values*) names a class that is a decoder alone."""
    named = values.get("architectures") or []
    return bool(values.get("is_decoder")) or any("CausalLM" in str(each) for each in named)


def _no_decoder(name: str, config: type, values: Mapping[str, Any]) -> str | None:
    """The line for a model that also has an encoder, or is one; None for all others."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    try:
        usual = config()
    except Exception:  # noqa: BLE001  (a config may need values)
        return None
    kind = values.get("model_type")
    if values.get("is_encoder_decoder", getattr(usual, "is_encoder_decoder", False)):
        what = f"{name!r} ({kind}) has an encoder and a decoder"
    elif config in MODEL_FOR_MASKED_LM_MAPPING and not getattr(usual, "causal", False):
        if values.get("causal"):
            return None
        what = f"{name!r} ({kind}) is an encoder, which reads in both directions"
    else:
        return None
    return f"{what}; lmedit edits decoders that read from left to right, choose one"


def check_drafting(name: str, config: Any) -> None:
    """Raise `ModelError` if *config* describes a model that drafts for another one."""
    if hasattr(config, "backbone_hidden_size"):
        raise ModelError(
            f"{name!r} ({config.model_type}) reads the states of another model, for which it "
            "drafts, and no text; edit that model"
        )


def check_quantised(name: str, values: Mapping[str, Any], folder: Path | None) -> None:
    """Raise `ModelError` if config.json (*values*) names a quantisation that lmedit cannot read.

    An entry that a GGUF conversion left in a *folder* of plain floats is ignored.
    """
    quantised = values.get("quantization_config")
    if not quantised or (folder is not None and left_of_gguf(values) and _plain(folder)):
        return
    check_method(name, quantised)


def left_of_gguf(values: Mapping[str, Any]) -> bool:
    """Whether config.json (*values*) says that the model is a GGUF file."""
    quantised = values.get("quantization_config")
    return isinstance(quantised, dict) and quantised.get("quant_method") == "gguf"


def _plain(folder: Path) -> bool:
    """Whether all tensors in *folder* are plain floats. Reads only the headers of the files."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                if any(file.get_slice(key).get_dtype() not in PLAIN for key in file.keys()):  # noqa: SIM118
                    return False
    except (SafetensorError, OSError):
        return False
    return bool(files)


def complaint(name: str, error: Exception, *, folder: bool, remedy: str) -> str:
    """The line for a checkpoint *name* whose loading raised *error*.

    *folder* tells whether it is a folder; *remedy* is for damaged files.
    """
    what = first_line(error)
    if "trust_remote_code" in str(error):
        return own_code(name)
    if isinstance(error, ImportError):
        return f"{name!r} needs a package that is not installed ({what}); install it"
    if isinstance(error, MemoryError) or "allocate memory" in what:
        return f"{name!r} does not fit into memory ({what}); give --dtype bfloat16"
    if isinstance(error, DAMAGE):
        return damage_line(name, what, remedy, folder=folder)
    return (
        f"{name!r} cannot be loaded ({type(error).__name__}: {what}); check its config.json, or "
        "load it in Python and give lmedit.Lm(model, tokenizer)"
    )


def damage_line(
    name: str, what: str, remedy: str = "write it again", *, folder: bool = True
) -> str:
    """The line for damaged or missing files."""
    kind = "model folder" if folder else "downloaded model"
    return f"{kind} {name!r} is damaged or incomplete ({what}); {remedy}"


def no_tokenizer(name: str, remedy: str) -> str:
    """The line for a model folder without a tokenizer."""
    return (
        f"model folder {name!r} has no tokenizer.json; {remedy}, or save the tokenizer of its base "
        f"there: AutoTokenizer.from_pretrained(BASE).save_pretrained({name!r})"
    )


def own_code(name: str) -> str:
    """The line for a checkpoint that needs its own Python code."""
    return (
        f"{name!r} needs Python code of its own, which lmedit never runs; choose a model with "
        "code in transformers, or load it yourself and give lmedit.Lm(model, tokenizer)"
    )


def not_here(name: str, known: Collection[str]) -> str:
    """The line for an unknown model *name*; *known* are the known names."""
    return (
        f"no world, folder or downloaded model {name!r}; add --download to fetch it from the hub, "
        f"or use one of: {', '.join(sorted(known)) or 'no world installed'}"
    )


def first_line(error: BaseException) -> str:
    """The first line of the message of *error*, or its class name."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
