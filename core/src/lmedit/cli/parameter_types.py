"""The kinds of values that flags take: places, places to write, and numbers within bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[float]
else:
    ParamType = click.ParamType  # click before 8.5 has no type argument


class PlaceType(click.Path):
    """The path of a file or folder: not empty; ``~`` is the user's home."""

    def __init__(self) -> None:
        """Paths are `pathlib.Path` values."""
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path in *value*; wrong usage if it is empty or no path can be like it."""
        text = str(value)
        if not text or "\0" in text:
            self.fail("the name of a file or folder must not be empty", param, ctx)
        if len(os.path.basename(text).encode(errors="replace")) > LONGEST_NAME:
            self.fail(f"{text[:40]}... has more than {LONGEST_NAME} bytes", param, ctx)
        try:
            return super().convert(Path(text).expanduser(), param, ctx)
        except RuntimeError:
            return super().convert(text, param, ctx)  # the user has no home


LONGEST_NAME = 255
"""The longest name of a file in bytes, on the usual file systems."""
PLACE = PlaceType()


class OutType(PlaceType):
    """The path of a file or folder to write: something can be made there, tried at once."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path in *value*. Raises `ArtifactError` if nothing can be written there."""
        from lmedit.storage.ours import check_writable

        path = super().convert(value, param, ctx)
        check_writable(path)
        return path


OUT = OutType()


class NumberType(ParamType):
    """A number within bounds; *whole* if it is a count. --help shows it as NUMBER."""

    name = "number"

    def __init__(self, least: int, most: int, *, whole: bool) -> None:
        """Numbers from *least* to *most*, inclusive."""
        self.least, self.most, self.whole = least, most, whole

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The number in *value*; wrong usage if it is no number or outside the bounds."""
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a {'whole ' if self.whole else ''}number", param, ctx)
        if not self.least <= number <= self.most:  # NaN neither
            self.fail(f"{value} is not from {self.least} to {self.most}", param, ctx)
        return number


COUNT = NumberType(1, 10**9, whole=True)
"""A number of things, at least one."""
NUMBER = NumberType(0, 2**31 - 1, whole=True)
"""A whole number that may be 0, as a seed."""
