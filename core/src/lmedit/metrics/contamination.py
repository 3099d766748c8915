"""Find out whether a trained editor has seen the facts of its evaluation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmedit.types import Prepared, Request

TRAINED_ON = "trained_on"
"""The tensor in an editor's file with the fingerprints of all facts that it was trained on."""


def trained_on(prepared: Prepared, request: Request) -> bool:
    """Whether the editor was trained or validated on the fact of *request*."""
    known = prepared.tensors.get(TRAINED_ON)
    return known is not None and bool((known == fingerprint(request)).any())


def fingerprint(request: Request) -> int:
    """A number for a fact: 63 bits of SHA-256 of its filled prompt, without blanks and case."""
    text = " ".join(request.text.casefold().split())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
