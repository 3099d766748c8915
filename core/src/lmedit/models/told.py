"""What a model's config tells by itself, read in milliseconds, without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.errors import ModelError, RequestError
from lmedit.models.chat import no_template
from lmedit.models.config_values import COUNTS
from lmedit.models.gguf_header import read_header
from lmedit.models.installed_worlds import worlds
from lmedit.models.load import find_place, is_gguf
from lmedit.models.refusals import check_folder, not_here
from lmedit.models.sources import MODELS
from lmedit.storage.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def check_files(model: str, *, download: bool, chat: bool) -> None:
    """Raise `ModelError` if the files of *model* are not here, or show that it cannot be loaded.

    *download* allows a model of the hub; *chat* asks for a chat template.
    """
    if is_gguf(model):
        read_header(Path(model))
        return
    place = find_place(model)
    if not place.folder.is_dir():
        if not (download or place.folder.exists() or _in_hub_cache(model)):
            raise ModelError(not_here(model, {*worlds(), *MODELS}))
        return
    check_folder(place.folder)
    if chat and _lacks_template(place.folder):
        raise ModelError(no_template(model))


def _in_hub_cache(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except ValueError:  # no name of the hub is like it
        return False


def _lacks_template(folder: Path) -> bool:
    """Whether the tokenizer's files in *folder* hold no chat template."""
    try:
        told = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError, RecursionError):
        return False  # who loads the tokenizer says so
    named = isinstance(told, dict) and told.get("chat_template")
    return not named and not any(folder.glob("*chat_template*"))


def check_layers(model: str, layers: Iterable[int]) -> None:
    """Raise `RequestError` if the config of *model* says that it lacks one of *layers*.

    A model whose config is not here, or does not say it in one number, passes.
    """
    count = count_layers(model)
    for layer in layers if count is not None else ():
        if count is not None and not 0 <= layer < count:
            raise RequestError(f"{model} has no layer {layer}; layers are 0 to {count - 1}")


def count_layers(model: str) -> int | None:
    """The number of blocks that the config of *model* names; None if it is not clear."""
    try:
        if is_gguf(model):
            header = read_header(Path(model))
            found = {header.values.get(f"{header.architecture}.block_count")}
        else:
            found = set(_counts(read_json(find_place(model).folder / "config.json")))
    except (ModelError, OSError, ValueError, RecursionError):
        return None  # who loads the model says so
    whole = {n for n in found if isinstance(n, int) and n > 0}
    return whole.pop() if len(whole) == len(found) == 1 else None


def _counts(values: Mapping[str, Any]) -> list[Any]:
    """All numbers of blocks in a config, also of its parts."""
    found = [values[name] for name in COUNTS if name in values]
    for part in values.values():
        if isinstance(part, dict):
            found += _counts(part)
    return found
