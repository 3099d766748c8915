"""Files of released editors: PyTorch archives, read without running code in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import ArtifactError
from lmedit.types import Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit.hyper.network import Hypernetwork


CONFIG = re.compile(r"transformers\.models\.\w+\.configuration_\w+\.\w+Config")
"""The full name of a configuration class of transformers."""


def released_weights(path: str) -> dict[str, Tensor]:
    """The tensors by name in the archive at *path*: those of its key "model", if it has one.

    Only tensors, plain values and the base model's configuration are unpickled, and tensors are
    read from disk when they are used. Raises `ArtifactError` for any other content.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"no file {path!r}; name a released editor's file")
    try:
        found = _load_with_configs(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path} is not a released editor ({why}); fetch it again") from error
    weights = found.get("model", found) if isinstance(found, dict) else {}
    tensors = {
        str(name): value for name, value in weights.items() if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ArtifactError(f"{path} holds no weights of an editor; name another file")
    return tensors


def take_over(path: str, found: dict[str, Tensor], network: Hypernetwork) -> Prepared:
    """The weights of *network* from *found*, the tensors of the file *path* by our names.

    Raises `ArtifactError` for a missing tensor or another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in shapes.items():
        if name not in found:
            raise ArtifactError(f"{path} lacks {name}; it was made for another kind of editor")
        if tuple(found[name].shape) != shape:
            raise ArtifactError(
                f"{path}: {name} is {tuple(found[name].shape)}, this model and these options need "
                f"{shape}; name the editor of this model, and leave out options that the file sets"
            )
    return Prepared({name: found[name] for name in shapes}, {"published": path})


def _load_with_configs(path: str) -> Any:
    """Read the archive. Configurations of transformers' own models are allowed in it."""
    allowed: list[Any] = []
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except pickle.UnpicklingError as error:
            found = CONFIG.search(str(error))
            kind = _config_named(found.group()) if found else None
            if kind is None or kind in allowed:
                raise
            allowed.append(kind)


def _config_named(name: str) -> Any:
    """The configuration class *name* of transformers; None if there is no such class."""
    from transformers import PreTrainedConfig

    module, _, each = name.rpartition(".")
    try:
        kind = getattr(import_module(module), each, None)
    except ImportError:
        return None
    return kind if isinstance(kind, type) and issubclass(kind, PreTrainedConfig) else None


def _is_zip(path: str) -> bool:
    """Whether torch can map the file into memory: archives of torch before 1.6 are no zip files."""
    return zipfile.is_zipfile(path)
