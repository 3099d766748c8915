"""A method's description, its options, and how `-o KEY VALUE` becomes option values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError

from lmedit.errors import OptionError, UnknownNameError, checks_kinds
from lmedit.storage.json_files import NotTunedError, parse_json, read_tuned_file
from lmedit.types import Frozen, first_complaint

if TYPE_CHECKING:
    from typing import Self

    from lmedit.models import Lm

_NOTHING: Mapping[str, Any] = MappingProxyType({})
Block = Annotated[int, Field(ge=0)]
"""The number of a block, from 0."""
Count = Annotated[int, Field(ge=1)]
"""A number of things, at least one."""
LARGEST = 10**9
"""The largest size of a number in an option; `Options.seed` alone may be larger."""


class Options(Frozen):
    """The options that a user may set for a method. Every option has a default.

    A method subclasses this class. ``presets`` maps a preset's name to option values. ``prepares``
    names the options that `edit_prepare` depends on; they are part of the cache key.

    A field states its bounds. `build_options` also refuses given numbers beyond `LARGEST`, and true
    and false in the place of a number.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = _NOTHING
    prepares: ClassVar[tuple[str, ...]] = ()
    prepares_too: ClassVar[tuple[str, ...]] = ()
    """More options that `lmedit prepare` takes. They set one of ``prepares`` (as ``span`` sets the
    layers), or change only its time and memory. It refuses all others."""
    probes: ClassVar[tuple[str, ...]] = ()
    """Options that only `edit_probe` uses; lmedit refuses them where nothing is probed."""
    probes_too: ClassVar[tuple[str, ...]] = ()
    """Options that `edit_probe` uses, as other hooks do."""
    locates: ClassVar[tuple[str, ...] | None] = None
    """All options that `edit_locate` uses, and those that set one of them, as ``span`` sets the
    layers. `lmedit locate` refuses others. None: unknown, and nothing is refused."""
    alternatives: ClassVar[tuple[str, ...]] = ()
    """Options that choose the same thing. If a preset or the user sets one of them, the tuned
    values of the others do not count."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, le=2**63 - 1, strict=True, description="random seed")

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """The options that `lmedit tune` varies, with the values to try on *lm*; empty if none."""
        del lm
        return {}

    def find_unused(self) -> Mapping[str, str]:
        """The options that have no effect with the other values, and the reason for each.

        lmedit refuses such an option if the user gives it. A reason is a part of a sentence, for
        example ``covariance is false``.
        """
        return {}

    @property
    def untuned(self) -> bool:
        """Whether the default is a guess for this model; tables mark it."""
        return False

    def prepared_from(self) -> dict[str, Any]:
        """The values that a preparation depends on, as JSON values; the cache key holds them."""
        return self.model_dump(mode="json", include=set(self.prepares))

    def prepared_on(self, lm: Lm) -> str:
        """The digest of what a preparation depends on in *lm*: the whole model, or less.

        With `Lm.identity_below` a preparation also fits a model that is edited further up. With
        `Lm.base_identity_below` it belongs to the model without any edit, as memories of keys do.
        """
        return lm.identity

    @property
    def needs_preparation(self) -> bool:
        """Whether these options need a preparation, if the method has one."""
        return True

    def resolved(self, lm: Lm) -> Self:
        """Fill in the values that depend on the model, for example ``layer``; called once."""
        del lm
        return self


def _check_numbers(options: Options, name: str, value: Any) -> None:
    """Raise `ValueError` if *value*, given for the option *name*, is too large or true or false."""
    kind = str(type(options).model_fields[name].annotation)
    for each in _leaves(value):
        if isinstance(each, bool) and "bool" not in kind:
            raise ValueError(f"{name}: {str(each).lower()} is not a value of this option")
    for each in _leaves(getattr(options, name)) if name != "seed" else ():
        if isinstance(each, int | float) and abs(each) > LARGEST:
            raise ValueError(f"{name}: {each:.6g} is too large; at most {LARGEST:.0e}")


def _leaves(value: Any) -> list[Any]:
    """*value*, or the values in it if it is a list of lists."""
    if not isinstance(value, list | tuple):
        return [value]
    return [leaf for each in value for leaf in _leaves(each)]


@dataclass(frozen=True)
class Method:
    """A method's answer to `edit_describe`."""

    name: str
    paper: str
    options: type[Options] = Options
    prepares_on: Literal["text", "cases"] | None = None
    """The data for `edit_prepare`: texts, or cases to train on. None: there is no preparation."""
    needs_subject: bool = False
    """Whether the method uses the subject's place in the prompt."""
    locates_answer: bool | None = None
    """Whether `edit_locate` reads the request's `target_true`; None: unknown."""


@checks_kinds
def build_options(
    method: Method, given: Mapping[str, Any], lm: Lm | None = None, seed: int | None = None
) -> Options:
    """Build the options of *method*. Later sources win: defaults, tuned for *lm*, preset, *given*.

    *given* may hold strings as typed, and the key ``preset``. *seed* is the seed of the whole
    command, if the user gave one. Raises `OptionError` or `UnknownNameError`; the message names the
    option. *given* must not hold another seed.
    """
    tuned = _find_tuned(method, lm)[0] if lm else {}
    values: dict[str, Any] = {}
    given = dict(given)
    preset = given.pop("preset", None)
    if preset is not None:
        if not isinstance(preset, str) or preset not in method.options.presets:
            raise UnknownNameError(
                "preset", str(preset), method.options.presets, f"{method.name}: "
            )
        values |= method.options.presets[preset]
    for name in given:
        if name not in method.options.model_fields:
            known = [*method.options.model_fields, "preset"]
            raise UnknownNameError("option", name, known, f"{method.name}: ")
    values |= {name: parse_value(value) for name, value in given.items()}
    others = method.options.alternatives
    dropped = set() if values.keys().isdisjoint(others) else {*others}
    values = {name: tuned[name] for name in tuned.keys() - dropped} | values
    if seed is not None:
        if "seed" in given and values["seed"] != seed:
            raise OptionError(
                f"{method.name}: -o seed {given['seed']} and --seed {seed} differ; give one"
            )
        values["seed"] = seed
    try:
        options = method.options.model_validate(values)
        _check_given(options, {name: values[name] for name in given})
    except ValidationError as error:
        raise OptionError(f"{method.name}: {first_complaint(error)}") from None
    except ValueError as error:
        raise OptionError(f"{method.name}: {error}") from None
    return options.resolved(lm) if lm else options


def _find_tuned(method: Method, lm: Lm) -> tuple[dict[str, Any], list[str]]:
    """The options of *lm*'s tuned file for *method*, and those that *method* does not have.

    If there are such options, they belong to another method of its name; none is used then.
    """
    values = dict(lm.tuned.get(method.name, {}).get("options", {}))
    foreign = sorted(values.keys() - method.options.model_fields.keys())
    return ({}, foreign) if foreign else (values, [])


def remarks_on_tuned(methods: Iterable[Method], lm: Lm) -> list[str]:
    """A note for each method whose name has the tuned options of another method."""
    return [
        f"{method.name}: the tuned options of {lm.name} are not used; they hold "
        f"{', '.join(foreign)}, which this method does not have"
        for method in methods
        if (foreign := _find_tuned(method, lm)[1])
    ]


def _check_given(options: Options, given: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a value that the user gave is out of bounds, or has no effect."""
    for name, value in given.items():
        _check_numbers(options, name, value)
    for name, why in options.find_unused().items():
        if given.get(name) is not None:
            raise ValueError(f"{name} has no effect, because {why}; remove {name}")


def name_unused(names: Sequence[str], why: str, *, when: bool) -> dict[str, str]:
    """An entry of `Options.find_unused` for each of *names* if *when* is true; else nothing."""
    return dict.fromkeys(names, why) if when else {}


def parse_value(value: Any) -> Any:
    """Parse a string as JSON if it is JSON (numbers, true, null, lists); else return *value*."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value


FILE_KEY = "@"
"""The key of a pair whose value is an options file (``-o @FILE``)."""


PARTS = ("blocks", "mlp_out", "norm")
"""The parts of a model that a user can name (``-o mlp_out PATH``)."""
MODEL_KEY = "model"
"""The entry of an options file that names such parts."""


def parts_of(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The parts of the model that ``-o KEY VALUE`` pairs name, also in options files."""
    found: dict[str, str] = {}
    for key, value in pairs:
        if key == FILE_KEY:
            found |= read_tuned(Path(value)).get(MODEL_KEY, {}).get("options", {})
        elif key in PARTS:
            found[key] = value
    return found


def read_tuned(path: Path) -> dict[str, Any]:
    """Read a file of `lmedit tune`: for each method, its options and the evidence for them.

    Raises `OptionError` for any other file.
    """
    try:
        return read_tuned_file(path)
    except NotTunedError as error:
        raise OptionError(f"{path} is not an options file: {error}") from error
    except OSError as error:
        raise OptionError(f"cannot read options file {path}: {error.strerror}") from error
    except ValueError as error:
        raise OptionError(f"{path} is not JSON ({error}); run lmedit tune again") from error


def fitting(methods: Sequence[Method], method: Method, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of *extra* that *method* takes, and those that none of *methods* takes."""
    taken = {name for each in methods for name in each.options.model_fields}
    mine = method.options.model_fields
    return {name: value for name, value in extra.items() if name in mine or name not in taken}


def for_methods(
    pairs: Sequence[tuple[str, str]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Sort ``-o KEY VALUE`` pairs by method: METHOD.KEY goes to one method, KEY to all.

    Parts of the model (`parts_of`) are left out.

    Raises `OptionError` if an options file (``-o @FILE``) holds none of the methods, and
    `UnknownNameError` for a method that does not take part.
    """
    sorted_: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in pairs:
        if key == FILE_KEY:
            tuned = read_tuned(Path(value))
            if not tuned.keys() & {*sorted_, MODEL_KEY}:
                raise OptionError(
                    f"{value} holds options of {', '.join(sorted(tuned)) or 'no method'}, not of "
                    f"{', '.join(names)}; give another file"
                )
            for name in tuned.keys() & sorted_.keys():
                sorted_[name] |= tuned[name]["options"]
            continue
        if key in PARTS:
            continue
        method, dot, option = key.rpartition(".")
        if dot and method not in sorted_:
            raise UnknownNameError("method", method, names, f"option {key!r}: ")
        for name in [method] if dot else names:
            sorted_[name][option] = value
    return sorted_


def remarks_on_files(given: Iterable[tuple[str, Any]], lm: Lm) -> list[str]:
    """A note for each options file (``-o @FILE``) that was tuned on other weights."""
    found = []
    for path in (Path(value) for key, value in given if key == FILE_KEY):
        for method, entry in read_tuned(path).items():
            evidence = entry.get("evidence", {})
            if evidence.get("model_digest", lm.digest) != lm.digest:
                model = evidence.get("model")
                found.append(f"{path}: {method} was tuned on other weights ({model})")
    return found


def takes_checkpoint(options: Options) -> bool:
    """Whether *options* name a published editor's file. lmedit then reads it and trains nothing."""
    return getattr(options, "checkpoint", None) is not None
