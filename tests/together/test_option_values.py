"""Every option of every method takes sensible numbers and refuses all others, by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, TypeAdapter

from lmedit.cli import main
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
    for given in ({"rate": "1e10"}, {"rate": True}, {"layers": "[1, true]"}, {"layers": [2**31]}):
        with pytest.raises(OptionError, match="loose: "):
            build_options(method, given)
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


NUMBER_FLAGS = [
    pytest.param(parameter, id=f"{path} {parameter.opts[0]}")
    for path, parameter in _flags()
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
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
