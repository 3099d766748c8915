"""Quiet the libraries of the hub, whose notes are not for our users."""

from __future__ import annotations

import sys


def quiet_hub() -> None:
    """Show the hub library's progress only on a terminal, and hide its warnings."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
