"""Load a model by name: a world, a pulled model, a folder, a GGUF file or a hub id.

lmedit downloads only if the user asks for it, and never runs code of a checkpoint.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import ModelError, checks_kinds
from lmedit.models import gguf
from lmedit.models.chat import chat_of
from lmedit.models.checkpoint import auto_class, read_weights
from lmedit.models.devices import SPREAD, device_of
from lmedit.models.installed_worlds import check_world, worlds
from lmedit.models.lm import Lm
from lmedit.models.offload import lacks_weights
from lmedit.models.quantised import how_quantised, quiet_packages
from lmedit.models.refusals import (
    check_drafting,
    check_file,
    check_folder,
    check_kind,
    check_quantised,
    check_weights,
    complaint,
    first_line,
    left_of_gguf,
    no_tokenizer,
    not_here,
)
from lmedit.models.sources import MODELS, pulled_folder
from lmedit.storage.json_files import NotTunedError, read_json, read_tuned_file
from lmedit.storage.locks import folder_locked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.types import Join, World

LEDGER = "lmedit-ledger.json"
"""A file in a model folder: its base and the edits in it (`lmedit.edits.model_folders`)."""
TUNED_FILE = "lmedit-tuned.json"
"""A file in a model folder: options tuned for that model, by method, with the evidence."""


@dataclass(frozen=True)
class Place:
    """The files that a model's name stands for."""

    source: str
    """The argument for transformers: a folder or a hub id."""
    folder: Path
    world: World | None = None
    remedy: str = "write it again"
    """The remedy if the files are damaged."""
    note: str | None = None
    """A note for the user at every load."""
    known_as: str | None = None
    """The name of its world, if that is not the name that the user gave."""

    @property
    def parts(self) -> dict[str, str]:
        """Parts of the model that the tuned options name (`options.PARTS`)."""
        return dict(self.tuned.get("model", {}).get("options", {}))

    @property
    def tuned(self) -> dict[str, Any]:
        """Tuned options by method. Those in the model's folder override the world's."""
        shared = self.world.tuned if self.world else None
        return {**(_read_tuned(shared) if shared else {}), **_read_tuned(self.folder / TUNED_FILE)}


@checks_kinds
def load_lm(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    download: bool = False,
    join: Join = "auto",
    chat: bool = False,
    system: str | None = None,
    parts: Mapping[str, str] = MappingProxyType({}),
) -> Lm:
    """Load the model *name*: a world, a pulled model, a folder, a GGUF file or a hub id.

    *dtype* is auto (the checkpoint's), float32, bfloat16, float16 or float64. *device* is a name
    that torch knows, or ``map``: spread over all devices by accelerate. *download* allows a
    download. *parts* names parts that are not found (`options.PARTS`). Raises `ModelError`, also
    if tensors are missing or cannot be read. Code of the checkpoint never runs.

    *join* is the joint of prompts and answers. With *chat*, prompts are asked through the chat
    template of the tokenizer, with *system* as the system prompt. Raises `ModelError` before the
    weights are read if there is no template.
    """
    name = str(name)
    with (
        folder_locked(Path(name), shared=True),  # nobody exchanges the folder meanwhile
        torch.inference_mode(mode=False),  # its tensors could not be written to
    ):
        lm = _load_lm(name, device, dtype, (chat, system), parts, download=download)
    lm.join, lm.asked_type = join, dtype
    return lm


def _load_lm(
    name: str,
    device: str,
    dtype: str,
    asked_by: tuple[bool, str | None],
    parts: Mapping[str, str],
    *,
    download: bool,
) -> Lm:
    place = find_place(name)
    notes = [place.note] if place.note else []
    again = partial(
        _place_on_device, place, dtype, device, local=place.folder.exists() or not download
    )
    asked = None
    if asked_by[0]:
        asked = chat_of(_tokenizer(place, local=again.keywords["local"]), asked_by[1], name)
    model, tokenizer = again(notes=notes)
    world = place.world
    lm = Lm(
        model,
        tokenizer,
        name=name,
        tuned=place.tuned,
        folder=place.folder,
        text=world.text if world else None,
        training=world.training if world else None,
        again=lambda: again(notes=[])[0],
        parts={**place.parts, **parts},
    )
    lm.prepared, lm.notes = world.prepared if world else None, tuple(notes)
    lm.chat = asked
    lm.base_name = place.known_as
    return lm


def outline(
    name: str,
    *,
    dtype: str = "auto",
    download: bool = False,
    parts: Mapping[str, str] = MappingProxyType({}),
) -> Lm:
    """The model *name* without weights, on the meta device. Raises `ModelError`."""
    file = Path(name)
    if is_gguf(name) and not gguf.converted_folder(file).is_dir():
        place, config = Place(name, file.parent), gguf.config_of(file)
    else:
        place = find_place(name)
        config = _config(place, local=place.folder.exists() or not download)
    try:
        chosen = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
        with torch.device("meta"):
            model = auto_class(config).from_config(config, dtype=chosen)
        model.tie_weights()
    except Exception as error:
        raise ModelError(_complaint(place, error)) from error
    named = {**place.parts, **parts}
    return Lm(model, None, name=name, tuned=place.tuned, folder=place.folder, parts=named)


def find_place(name: str) -> Place:
    """Find the files of the model *name*. Converts a GGUF file first. Raises `ModelError`."""
    world = worlds().get(name)
    if world is None:
        check_world(name)
    if world is not None and isinstance(world.model, Path):
        return Place(str(world.model), world.model, world)
    pulled = name if world is None else str(world.model)
    if world is not None or name in MODELS:
        folder, command = pulled_folder(pulled), f"run: lmedit models pull {pulled}"
        if not folder.is_dir():
            raise ModelError(f"the model {name!r} is not here; {command}")
        return Place(str(folder), folder, world, remedy=command)
    if is_gguf(name):
        found = gguf.folder_of(Path(name))
        return Place(
            str(found.folder),
            found.folder,
            worlds().get(found.world or ""),
            remedy="delete that folder, lmedit makes it again",
            note=found.note,
            known_as=found.world,
        )
    if name.startswith("~"):
        name = os.path.expanduser(name)
    folder = Path(name)
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"no model folder {name!r}; give a folder with config.json, or a hub id")
    check_file(folder)
    base = _base_name(folder) or None
    return Place(name, folder, worlds().get(base or ""), known_as=base)


def _base_name(folder: Path) -> str:
    """The name of the model that the edited model in *folder* was made of; empty if it is none."""
    try:
        head = read_json(folder / LEDGER)
        return str(head["base"]["name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""  # no ledger, or a damaged one: who opens it says so


def is_gguf(name: str) -> bool:
    """Whether *name* is a GGUF file. Raises `ModelError` if that file does not exist."""
    if not name.endswith(gguf.SUFFIX) or Path(name).is_dir():
        return False
    if not Path(name).is_file():
        raise ModelError(f"no GGUF file {name!r}; give its path")
    return True


def _place_on_device(
    place: Place, dtype: str, device: str, *, local: bool, notes: list[str]
) -> tuple[Any, Any]:
    """Model and tokenizer; the model is on its device and takes no gradients."""
    model, tokenizer = _load(place, dtype, device, local=local, notes=notes)
    model.requires_grad_(False)
    if device != SPREAD:
        if how_quantised(model) is None:  # else it was read onto its device
            model.to(device_of(device))
    elif lacks_weights(model):
        raise ModelError(
            f"{place.source!r} does not fit: a part of it was left out where it cannot be edited; "
            "give --dtype bfloat16, or --device cpu"
        )
    return model, tokenizer


def _load(
    place: Place, dtype: str, device: str, *, local: bool, notes: list[str]
) -> tuple[Any, Any]:
    source = place.source
    torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    if device == SPREAD and find_spec("accelerate") is None:
        raise ModelError("--device map needs accelerate; pip install 'lmedit[sharded]'")
    config = _config(place, local=local)
    packed = getattr(config, "quantization_config", None) is not None
    if place.folder.is_dir():
        check_weights(place.folder, place.remedy, packed=packed)
    where = "auto" if device == SPREAD else {"": device_of(device)} if packed else None
    try:
        tokenizer = _tokenizer(place, local=local)
        with quiet_packages() if packed else nullcontext():
            model = read_weights(
                source,
                config,
                notes,
                dtype=torch_dtype,
                local_files_only=local,
                device_map=where,
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_complaint(place, error)) from error
    if not tokenizer("a").input_ids:  # transformers makes an empty tokenizer out of no files
        raise ModelError(no_tokenizer(source, place.remedy))
    return model, tokenizer


def _tokenizer(place: Place, *, local: bool) -> Any:
    """The tokenizer of a checkpoint; it takes a fraction of a second, without the weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            place.source, local_files_only=local, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(_complaint(place, error)) from error


def _config(place: Place, *, local: bool) -> Any:
    """Read the config of a checkpoint. Raises `ModelError` if the checkpoint is not supported."""
    from transformers import AutoConfig, PreTrainedConfig

    source = place.source
    folder = place.folder if place.folder.is_dir() else None
    if folder is not None:
        check_folder(folder)
    try:
        values, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local)
    except Exception as error:
        raise ModelError(_no_config(place, error, local=local)) from error
    check_kind(source, values)
    check_quantised(source, values, folder)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:
        raise ModelError(_complaint(place, error)) from error
    check_drafting(source, config)
    if left_of_gguf(values):
        del config.quantization_config
    return config


def _no_config(place: Place, error: Exception, *, local: bool) -> str:
    """The line for a model whose config was not found."""
    if place.folder.exists():
        return _complaint(place, error)
    if local:
        return not_here(place.source, {*worlds(), *MODELS})
    what = f"cannot download {place.source!r}: {type(error).__name__} ({first_line(error)})"
    return f"{what}; check the name and the network"


def _complaint(place: Place, error: Exception) -> str:
    folder = place.folder.exists()
    remedy = place.remedy if folder else "add --download to fetch the missing files"
    return complaint(place.source, error, folder=folder, remedy=remedy)


def _read_tuned(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        return read_tuned_file(file)
    except NotTunedError as error:
        raise ModelError(f"{file} is not an options file: {error}; delete it") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not JSON ({error}); delete it or tune again") from error
