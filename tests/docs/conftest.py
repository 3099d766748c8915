"""What the tests of documents share."""

from demo_cache import demo_is_prepared, demo_statistics
from short_text import short_held_out_text

__all__ = ["demo_is_prepared", "demo_statistics", "short_held_out_text"]
