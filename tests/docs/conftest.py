"""What the tests of documents share."""

from demo_cache import demo_is_prepared, demo_statistics

__all__ = ["demo_is_prepared", "demo_statistics"]
