"""What the attacks share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from lmedit import Lm


@pytest.fixture
def lm() -> Lm:
    return tiny_family("gpt2", torch.float32)


@pytest.fixture
def step() -> int:
    """The distance of two interrupts: one bytecode in the long attack, more in the suite."""
    return 1 if os.environ.get("LMEDIT_ATTACK_SECONDS") else 23
