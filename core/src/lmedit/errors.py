"""Errors that a user can fix. Each message names the culprit, then the remedy, in one line."""

from __future__ import annotations

import signal
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class LmeditError(Exception):
    """The base of all expected errors. The command line prints them without a traceback."""


class UnsoundEditWarning(UserWarning):
    """A method calls its own edit unsound: it would damage the model.

    Python programs get it; the commands refuse or count such edits.
    """


class UnknownNameError(LmeditError):
    """A method, option, preset or world with this name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], culprit: str = "") -> None:
        """The user asked for the *kind* called *name*; *known* are the names that exist."""
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        among = ", ".join(names) if names else "none installed"
        super().__init__(f"{culprit}no {kind} {name!r} among {among}{hint}")


class BrokenPluginError(LmeditError):
    """A plugin cannot be loaded, or it breaks a law while it works."""


class HookError(BrokenPluginError):
    """A hook raised an exception of its own; `__cause__` holds that exception."""


class ModelChangedError(BrokenPluginError):
    """A plugin changed the model outside apply and revert, or revert did not restore it."""

    def __init__(self, what: str) -> None:
        """*what* describes the act of the plugin."""
        super().__init__(f"{what}; load the model again")
        self.what = what


class UsageError(LmeditError):
    """Arguments that do not go together. The command line exits with code 2."""


class OptionError(LmeditError):
    """The method refuses an option value."""


class RequestError(LmeditError):
    """The request cannot be edited as it is given."""


class SubjectNotFoundError(RequestError):
    """The prompt does not contain the subject, or no token ends where the subject ends."""


class ModelError(LmeditError):
    """A model or tokenizer cannot be loaded."""


class UnknownArchitectureError(ModelError):
    """The model has no such part; the message names the part and where lmedit looked."""


class NotPreparedError(LmeditError):
    """A method needs statistics or a trained editor that does not exist yet."""


class ArtifactError(LmeditError):
    """A file of lmedit is damaged, or it belongs to another model or another format."""


class LedgerError(LmeditError):
    """An edit is missing or present twice, or someone else changed the weights."""


class CasesError(LmeditError):
    """A cases file or a corpus cannot be read."""


class RunError(LmeditError):
    """A run folder cannot be read or written."""


class LimitError(LmeditError):
    """A measured value is outside a budget or a gate."""


def how_ended(code: int) -> str:
    """How a process with this exit *code* ended, in words."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"
