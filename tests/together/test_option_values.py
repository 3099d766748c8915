"""Every option of every method takes sensible numbers and refuses all others, by kind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from lmedit.cli import main
from lmedit.cli.parameter_types import NumberType
from lmedit.errors import OptionError
from lmedit.options import LARGEST, Method, Options, build_options
from lmedit.registry import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

METHODS = {loaded.name: loaded.method for loaded in resolve((), (), lambda _: None)}
SIGNED = {("kn", "threshold")}
"""Options that any number fits: attributions may be negative."""


def _numbers(method: Method) -> dict[str, FieldInfo]:
    """The options of *method* that hold numbers, also within tuples."""
    return {
        name: field
        for name, field in method.options.model_fields.items()
        if any(kind in str(field.annotation) for kind in ("int", "float"))
        and "Literal" not in str(field.annotation)
    }


NUMBERS = [(method, name) for method in METHODS for name in _numbers(METHODS[method])]


def _refused(method: str, name: str, value: Any) -> str:
    with pytest.raises(OptionError) as refused:
        build_options(METHODS[method], {name: value})
    told = str(refused.value)
    assert told.startswith(f"{method}: {name}"), told
    assert "\n" not in told
    return told


def _shaped(method: str, name: str, value: str) -> str:
    """*value* in the shape of the option: alone, in a list, or in a list of pairs."""
    shape = str(METHODS[method].options.model_fields[name].annotation)
    depth = shape.count("tuple[") if "tuple[" in shape else 0
    return {0: value, 1: f"[{value}]", 2: f"[[{value}, {value}]]"}[depth]


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_what_no_option_can_mean_is_refused(method: str, name: str) -> None:
    for value in ("1e300", "-1e300", str(2**70), "NaN", "Infinity", "-Infinity", '"seven"'):
        _refused(method, name, _shaped(method, name, value))
    for value in ("true", "false"):
        _refused(method, name, _shaped(method, name, value))
    for value in ("{}", "[[[1]]]", '"1 2"'):
        _refused(method, name, value)


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_every_number_has_a_lower_bound(method: str, name: str) -> None:
    if (method, name) in SIGNED:
        return
    for value in ("-2", "-1e6"):
        _refused(method, name, _shaped(method, name, value))


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_the_default_lies_within_the_bounds(method: str, name: str) -> None:
    default = METHODS[method].options.model_fields[name].default
    made = METHODS[method].options.model_validate({name: default})
    assert getattr(made, name) == default


CHOICES = [
    (method, name, get_args(field.annotation))
    for method in METHODS
    for name, field in METHODS[method].options.model_fields.items()
    if get_origin(field.annotation) is Literal
]
SWITCHES = [
    (method, name)
    for method in METHODS
    for name, field in METHODS[method].options.model_fields.items()
    if field.annotation is bool
]
PLAIN = [
    (method, name)
    for method, name in NUMBERS
    if METHODS[method].options.model_fields[name].annotation in {int, float}
]
WORDS = st.text(st.characters(categories=["L", "N", "P"]), max_size=6)
MANY = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def _taken(method: str, name: str, typed: str) -> Any:
    """The value of the option after ``-o name typed``; the error if it is refused."""
    try:
        return getattr(build_options(METHODS[method], {name: typed}), name)
    except OptionError as error:
        told = str(error)
        assert told.startswith(f"{method}: {name}"), told
        assert "\n" not in told
        return error


@MANY
@given(st.sampled_from(CHOICES), st.data())
def test_a_choice_is_one_of_its_words_or_refused(case: Any, data: st.DataObject) -> None:
    method, name, words = case
    typed = data.draw(st.one_of(st.sampled_from(words), WORDS, st.just("null"), st.just("[]")))
    found = _taken(method, name, typed)
    idle = isinstance(found, OptionError) and "has no effect" in str(found)
    assert found == typed if typed in words and not idle else isinstance(found, OptionError)


@MANY
@given(st.sampled_from(SWITCHES), st.one_of(st.sampled_from(["true", "false"]), WORDS))
def test_a_switch_is_true_or_false(case: tuple[str, str], typed: str) -> None:
    method, name = case
    found = _taken(method, name, typed)
    if typed in {"true", "false"}:
        idle = isinstance(found, OptionError) and "has no effect" in str(found)
        assert idle or found is (typed == "true")
    elif not isinstance(found, OptionError):
        assert typed.strip('"').lower() in SPELLINGS
        assert isinstance(found, bool)


SPELLINGS = {"1", "0", "on", "off", "t", "f", "y", "n", "yes", "no", "true", "false", "1.0", "0.0"}
"""What pydantic reads as true or false."""


@MANY
@given(st.sampled_from(PLAIN), st.floats(-5, 5) | st.integers(-3, 10**12))
def test_a_number_is_obeyed_within_its_bounds_and_else_refused(
    case: tuple[str, str], value: float
) -> None:
    method, name = case
    field = METHODS[method].options.model_fields[name]
    whole = field.annotation is int
    inside = all(
        value >= getattr(bound, "ge", -math.inf)
        and value > getattr(bound, "gt", -math.inf)
        and value <= getattr(bound, "le", math.inf)
        and value < getattr(bound, "lt", math.inf)
        for bound in field.metadata
    )
    small = abs(value) <= LARGEST or name == "seed"
    kind = float(value).is_integer() if whole else True
    found = _taken(method, name, repr(value))
    if isinstance(found, OptionError):
        idle = "has no effect" in str(found)
        strict = name == "seed" and isinstance(value, float)
        assert idle or strict or not (inside and small and kind), (case, value, str(found))
    else:
        assert inside
        assert small
        assert kind
        assert found == value


@pytest.mark.parametrize("name", METHODS)
def test_presets_are_valid(name: str) -> None:
    for preset in METHODS[name].options.presets:
        build_options(METHODS[name], {"preset": preset})


def test_a_plugin_without_bounds_is_bounded_too() -> None:
    class Loose(Options):
        rate: float = 1.0
        layers: tuple[int, ...] = ()
        both: bool | int = 3
        words: tuple[str, ...] = ()

    method = Method("loose", "none", Loose)
    for values in ({"rate": "1e10"}, {"rate": True}, {"layers": "[1, true]"}, {"layers": [2**31]}):
        with pytest.raises(OptionError, match="loose: "):
            build_options(method, values)
    assert (
        build_options(method, {"both": "true", "rate": str(LARGEST)}).model_dump()["both"] is True
    )
    assert build_options(method, {"words": '["true"]'}).model_dump()["words"] == ("true",)


def _flags(command: click.Command = main, path: str = "") -> Iterator[tuple[str, click.Parameter]]:
    """All parameters of all commands."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _flags(each, f"{path} {name}".strip())
    for parameter in command.params:
        yield path, parameter


KINDS = (NumberType, click.types.IntParamType, click.types.FloatParamType)
NUMBER_FLAGS = [
    pytest.param(parameter, id=f"{path} {parameter.opts[0]}")
    for path, parameter in _flags()
    if isinstance(parameter.type, KINDS)
]


@pytest.mark.parametrize("parameter", NUMBER_FLAGS)
def test_number_flags_are_bounded(parameter: click.Parameter) -> None:
    """No command takes a negative, an endless or an absurdly large number."""
    for text in ("-1", "nan", "inf", "-inf", "1e300", "true", "", str(2**70)):
        with pytest.raises(click.BadParameter):
            parameter.type.convert(text, parameter, None)


def test_the_walk_finds_bounds_where_they_are() -> None:
    """The tests above would pass on nothing; so count what they walk."""
    assert len(NUMBERS) > 100
    assert len(NUMBER_FLAGS) > 10
    bounds = TypeAdapter(int, config=None), Field(ge=1).metadata
    assert bounds[1] == [Ge(1)]
    assert {type(b) for m, n in NUMBERS for b in METHODS[m].options.model_fields[n].metadata} <= {
        Ge,
        Gt,
        Le,
        Lt,
        *{type(b) for b in Options.model_fields["seed"].metadata},
    }
