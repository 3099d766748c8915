"""The cache folder of computed results, and the keys of its files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "LMEDIT_CACHE"


def cache_folder() -> Path:
    """The folder of prepared statistics and editors: LMEDIT_CACHE, or the user's cache."""
    from platformdirs import user_cache_path

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("lmedit")


def key_of(**parts: Any) -> str:
    """A cache key: SHA-256 of all *parts* as canonical JSON; 64 hex digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
