"""Load a model, find the parts of its family, and turn text into tokens and places."""

from lmedit.models.installed_worlds import world, worlds
from lmedit.models.lm import Lm
from lmedit.models.load import LEDGER, TUNED_FILE, load_lm, outline
from lmedit.models.tokens import Batch, as_template
from lmedit.models.told import check_files, check_layers

__all__ = [
    "LEDGER",
    "TUNED_FILE",
    "Batch",
    "Lm",
    "as_template",
    "check_files",
    "check_layers",
    "load_lm",
    "outline",
    "world",
    "worlds",
]
