"""Prove that a written model folder holds the model, before it takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError
from lmedit.models import load_lm
from lmedit.models.written import compare_written
from lmedit.types import Site

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.models import Lm


def check_written(lm: Lm, folder: Path) -> None:
    """Raise `ArtifactError` if the weights in *folder* are not, bit for bit, those of *lm*.

    The files are compared tensor by tensor. If they use other names of tensors than the model,
    transformers loads the folder, and the digests are compared.
    """
    wrong, left = compare_written(folder, lm.parameters, lambda name: lm.snapshot(Site(name)))
    if wrong is None and left:
        found = load_lm(str(folder), device="cpu")
        if found.weights_digest() != lm.weights_digest():
            wrong = min(left)
    if wrong is not None:
        raise ArtifactError(
            f"transformers writes other values of {wrong} than the model has; nothing is kept, use "
            "lmedit export"
        )
