"""The weights of a model folder as they lie in its files: read one tensor at a time, no model."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lmedit.errors import ModelError
from lmedit.models.refusals import WEIGHTS, check_weights
from lmedit.storage.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a model folder by name, with the file of each; shards are one whole."""

    folder: Path
    files: dict[str, Path]

    @classmethod
    def of(cls, folder: Path) -> StoredWeights:
        """The tensors of *folder* that transformers reads; raises `ModelError`."""
        check_weights(folder, "write it again")
        single, index = (folder / name for name in WEIGHTS)
        if single.is_file():
            paths = [single]
        else:
            try:
                table = read_json(index)["weight_map"]
                paths = sorted({folder / str(name) for name in table.values()})
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} is damaged ({error}); write the model again") from error
        found: dict[str, Path] = {}
        for path in paths:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118
                    if name in found:
                        raise ModelError(f"{path} and {found[name]} both hold {name}; remove one")
                    found[name] = path
        return cls(folder, found)

    def tensor(self, name: str) -> Tensor:
        """The tensor *name*, as a view of its file."""
        with _opened(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor *name*, from the header."""
        with _opened(self.files[name]) as file:
            return tuple(file.get_slice(name).get_shape())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged ({error}); get this file again") from error


def match_names(mine: set[str], theirs: set[str]) -> dict[str, str]:
    """For each of *mine* its name among *theirs*, where both have it.

    Some checkpoints leave out the name of the model's body (``h.0.mlp`` for
    ``transformer.h.0.mlp``). Then the body's name is added or removed.
    """
    found = {name: name for name in mine & theirs}
    left, free = mine - theirs, theirs - mine
    heads = sorted({name.partition(".")[0] for name in left | free})
    for head in heads:
        for name in sorted(left):
            for other in (f"{head}.{name}", name.removeprefix(f"{head}.")):
                if other in free and name not in found:
                    found[name] = other
                    free.discard(other)
    return found
