"""Values that make a model give a new answer: contexts, the loss, the search for delta.

ROME and the methods of the MEMIT family share it.
"""

from lmedit.values.contexts import sample_contexts
from lmedit.values.options import ValueOptions
from lmedit.values.rows import Place, Rows, rows_of
from lmedit.values.search import Value, optimise_values
from lmedit.values.statistics import count_moments, counting_of, factor

__all__ = [
    "Place",
    "Rows",
    "Value",
    "ValueOptions",
    "count_moments",
    "counting_of",
    "factor",
    "optimise_values",
    "rows_of",
    "sample_contexts",
]
