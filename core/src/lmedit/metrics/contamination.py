"""Whether a trained editor has seen the facts that it is judged by."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmedit.types import Prepared, Request

TRAINED_ON = "trained_on"
"""The tensor of an editor's file that holds the fingerprints of all facts it was trained on."""


def trained_on(prepared: Prepared, request: Request) -> bool:
    """Whether *request* asks about a fact that the editor was trained or validated on."""
    known = prepared.tensors.get(TRAINED_ON)
    return known is not None and bool((known == fingerprint(request)).any())


def fingerprint(request: Request) -> int:
    """A fact's number, 63 bits of SHA-256 of its filled prompt, whatever its blanks and case."""
    text = " ".join(request.text.casefold().split())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
