"""What a user can mend: every error names the culprit, then the remedy, in one line."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class LmeditError(Exception):
    """The base of all expected errors; the command line prints it without a traceback."""


class UnknownNameError(LmeditError):
    """A method, option, preset or world that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], culprit: str = "") -> None:
        """Word the error: *kind* and *name* were asked for, *known* is what there is."""
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        among = ", ".join(names) if names else "none installed"
        super().__init__(f"{culprit}no {kind} {name!r} among {among}{hint}")


class BrokenPluginError(LmeditError):
    """A plugin that cannot be loaded, or that breaks a law while it works."""


class HookError(BrokenPluginError):
    """A hook that raised something of its own; that is the cause."""


class ModelChangedError(BrokenPluginError):
    """A plugin wrote to the model outside apply and revert, or did not bring it back."""

    def __init__(self, what: str) -> None:
        """*what* happened."""
        super().__init__(f"{what}; load the model again")
        self.what = what


class UsageError(LmeditError):
    """Flags that do not fit together; the command line exits with 2."""


class OptionError(LmeditError):
    """An option value that its method refuses."""


class RequestError(LmeditError):
    """A fact that cannot be edited as it was asked for."""


class SubjectNotFoundError(RequestError):
    """The subject does not stand in the prompt, or no token ends with it."""


class ModelError(LmeditError):
    """A model or tokenizer that cannot be loaded."""


class UnknownArchitectureError(ModelError):
    """A part of the model was not found; the message names what was looked for."""


class NotPreparedError(LmeditError):
    """A method needs statistics or a trained editor that does not exist yet."""


class ArtifactError(LmeditError):
    """A file of ours that is damaged, or that belongs to something else."""


class LedgerError(LmeditError):
    """An edit that is not in the model, or is already, or weights that others changed."""


class CasesError(LmeditError):
    """A cases file or corpus that cannot be read."""


class RunError(LmeditError):
    """A run folder that cannot be read or written."""
