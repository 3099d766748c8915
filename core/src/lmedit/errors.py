"""Errors that a user can fix. Each message names the culprit, then the remedy, in one line."""

from __future__ import annotations

import signal
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

P = ParamSpec("P")
R = TypeVar("R")


class LmeditError(Exception):
    """The base of all expected errors. The command line prints them without a traceback."""


class UnsoundEditWarning(UserWarning):
    """A method calls its own edit unsound: it would damage the model.

    Python programs get it; the commands refuse or count such edits.
    """


class WrongKindError(LmeditError, TypeError):
    """An argument of a public function has another type, such as a name in the place of a model."""


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


def one_line(error: BaseException) -> str:
    """The message of *error* with one blank in place of each line break and run of blanks."""
    return " ".join(str(error).split())


def how_ended(code: int) -> str:
    """How a process with this exit *code* ended, in words."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


KINDS = {
    "Lm": "give lmedit.load_lm(NAME), or lmedit.Lm(model, tokenizer)",
    "PreTrainedModel": "give a model of transformers, or use lmedit.load_lm(NAME)",
    "Request": "give lmedit.Request(prompt=..., subject=..., target_new=...)",
    "Update": "give what editor.compute returns, or lmedit.load_patch(FILE)[0]",
    "Editor": "give lmedit.editor(NAME, lm)",
    "LoadedMethod": "give lmedit.load(NAME)",
    "Method": "give lmedit.load(NAME).method",
    "Options": "give lmedit.build_options(lmedit.load(NAME).method, {}, lm)",
    "str": "give a name as text",
    "str | Path": "give a name or a path",
}
"""The types of arguments that `checks_kinds` checks, and what to give."""
_NAMES = {"PreTrainedModel": ("Module",), "str | Path": ("str", "PurePath")}
"""The names of the classes that some annotations stand for; wrapped models are modules."""
MANY = "Sequence["
"""How the annotation of a sequence of such values begins."""


def checks_kinds(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of *function* whose annotation is one of `KINDS`, or a sequence of one.

    The new function raises `WrongKindError`, which names the argument, its type and what to give.
    """
    parameters = signature(function)
    kinds = {
        name: kind
        for name, each in parameters.parameters.items()
        if (kind := str(each.annotation)).removeprefix(MANY).removesuffix("]") in KINDS
    }

    @wraps(function)
    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = parameters.bind_partial(*args, **kwargs).arguments
        for name in kinds.keys() & given.keys():
            _check_kind(name, given[name], kinds[name])
        return function(*args, **kwargs)

    return check_and_call


def _check_kind(name: str, value: Any, kind: str) -> None:
    """Raise `WrongKindError` if *value*, given as *name*, is not of the type called *kind*."""
    one = kind.removeprefix(MANY).removesuffix("]")
    if one == kind:
        values = [value]
    elif isinstance(value, list | tuple):
        values = list(value)
    else:
        raise WrongKindError(f"{name} is {_type_of(value)}, not a list of {one}; give a list")
    for each in values:
        known = {base.__name__ for base in type(each).__mro__}
        if not known & {*_NAMES.get(one, (one,))}:
            raise WrongKindError(f"{name} is {_type_of(each)}, not {one}; {KINDS[one]}")


def _type_of(value: object) -> str:
    """The type of *value*, and a short text itself."""
    name = type(value).__name__
    return f"{name} {value!r}" if isinstance(value, str) and len(value) <= 40 else name
