"""The code that hypernetwork editors share: gradient factors, examples, losses, training loop.

A hypernetwork is trained once for a model, on other edits than those that it makes later. For a
request it takes the factors of the loss's gradient and returns a low-rank change of a few matrices
(Mitchell et al. 2022, arXiv 2110.11309; De Cao et al. 2021, arXiv 2104.08164).
"""

from lmedit.hyper.editing import (
    answer_factors,
    build_untrained,
    compute_edit,
    compute_joint_edit,
    edit_locate,
    prepare_editor,
    smaller_of,
)
from lmedit.hyper.examples import Example, Examples, examples_from, row_of
from lmedit.hyper.factors import Factors
from lmedit.hyper.frozen import edit_factors
from lmedit.hyper.network import EditBatch, Hypernetwork, LowRankBatch
from lmedit.hyper.options import HyperOptions, MatrixOptions
from lmedit.hyper.plan import works
from lmedit.hyper.training import train
from lmedit.metrics.contamination import trained_on

__all__ = [
    "EditBatch",
    "Example",
    "Examples",
    "Factors",
    "HyperOptions",
    "Hypernetwork",
    "LowRankBatch",
    "MatrixOptions",
    "answer_factors",
    "build_untrained",
    "compute_edit",
    "compute_joint_edit",
    "edit_factors",
    "edit_locate",
    "examples_from",
    "prepare_editor",
    "row_of",
    "smaller_of",
    "train",
    "trained_on",
    "works",
]
