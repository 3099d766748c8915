"""Files of released editors: PyTorch archives, read without running code in them."""

from __future__ import annotations

import pickle
import re
import warnings
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
        _check_sizes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it then refuses
            found = _load_with_configs(path)
    except Exception as error:  # torch's reader of a damaged archive may raise anything
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path} is not a released editor ({why}); fetch it again") from error
    weights = found.get("model", found) if isinstance(found, dict) else {}
    weights = weights if isinstance(weights, dict) else {}
    tensors = {str(name): value for name, value in weights.items() if _holds_numbers(value)}
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


def _holds_numbers(value: object) -> bool:
    """Whether *value* is a plain tensor of numbers, and not a sparse, nested or empty shell."""
    return (
        isinstance(value, torch.Tensor)
        and not (value.is_nested or value.is_meta or value.is_quantized or value.is_complex())
        and value.layout == torch.strided
    )


MOST_PICKLE = 1 << 26
"""The largest part of an archive besides its tensors, in bytes."""


def _check_sizes(path: str) -> None:
    """Raise `ValueError` if a part of the archive would become larger in memory than it is here.

    Archives of torch are not compressed. One that is compressed could be a bomb.
    """
    if not _is_zip(path):
        return
    size = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size > size:
                raise ValueError(f"its part {part.filename[:60]!r} is compressed")
            if part.filename.endswith(".pkl") and part.file_size > MOST_PICKLE:
                raise ValueError(f"its part {part.filename[:60]!r} has {part.file_size} bytes")


def _load_with_configs(path: str) -> Any:
    """Read the archive. Configurations of transformers' own models are allowed in it."""
    allowed: list[Any] = []
    while True:  # each turn allows one more class, and there are few
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
