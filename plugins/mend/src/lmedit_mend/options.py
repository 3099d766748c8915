"""What can be set for MEND, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from lmedit.hyper.options import TRAINING, HyperOptions


class MendOptions(HyperOptions):
    """MEND's options; the defaults train in minutes what the published recipe takes days for."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({
        "fast": {},
        "published": {
            "rank": 1920, "learning_rate": 1e-6, "edit_rate": 1e-4, "edit_rate_rate": 1e-4,
            "batch": 10, "steps": 100_000, "validate_every": 500, "patience": 4, "warmup": 0,
            "decay": False,
        },
        "checkpoint": {"rank": 1920, "sign": 1, "last_rectified": True},
    })  # fmt: skip
    prepares: ClassVar[tuple[str, ...]] = (
        *TRAINING, "seed", "rank", "hidden", "normalise", "last_rectified", "sign", "edit_rate",
        "edit_rate_rate",
    )  # fmt: skip

    rank: int = Field(default=128, ge=1, description="of each layer of the network")
    hidden: int = Field(default=1, ge=0, description="layers before the last one")
    normalise: bool = Field(default=True, description="normalise the factors' coordinates")
    last_rectified: bool = Field(
        default=False, description="no negative change in the last layer either (released code)"
    )
    sign: Literal[-1, 1] = Field(
        default=-1, description="of the step; +1 for the published checkpoints"
    )
    edit_rate: float = Field(default=1e-4, gt=0, description="step lengths at the start")
    edit_rate_rate: float = Field(default=1e-4, gt=0, description="Adam's, of the step lengths")
    learning_rate: float = Field(default=1e-4, gt=0, description="Adam's, of the network")
    warmup: int = Field(default=20, ge=0, description="steps until the full learning rate")
    decay: bool = Field(default=True, description="let the learning rate fall to zero")
