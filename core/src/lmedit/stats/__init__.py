"""Second moments of keys, S = sum k k^T: compute them over a corpus, store, verify and share."""

from lmedit.stats.counting import (
    BATCH_TOKENS,
    Counting,
    Moment,
    Place,
    name_of,
    places_of,
    second_moments,
)
from lmedit.stats.self_written import SELF, SelfWritten, text_name
from lmedit.stats.solving import cholesky, condition, positive_factor
from lmedit.stats.store import (
    PREFIX,
    Statistics,
    damaged_statistics,
    export_statistics,
    import_statistics,
    list_statistics,
    moments_of,
    statistics_named,
)

__all__ = [
    "BATCH_TOKENS",
    "PREFIX",
    "SELF",
    "Counting",
    "Moment",
    "Place",
    "SelfWritten",
    "Statistics",
    "cholesky",
    "condition",
    "damaged_statistics",
    "export_statistics",
    "import_statistics",
    "list_statistics",
    "moments_of",
    "name_of",
    "places_of",
    "positive_factor",
    "second_moments",
    "statistics_named",
    "text_name",
]
