"""The answers that tests share are those of the trials; other code is always tried."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
import tried_once

from lmedit.replay import trials
from lmedit.replay.trials import try_ways
from lmedit.tiny import FAMILIES, tiny_family

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm
    from lmedit.replay.ways import Ways


def tried(lm: Lm, how: object) -> tuple[Ways, list[Ways]]:
    """What *how* finds for *lm*, and what it made the passes use."""
    taken: list[Ways] = []
    with torch.no_grad():
        return how(lm, taken.append), taken


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_has_the_same_short_cuts(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tried_once, "_TRIED", {})
    first, second = tiny_family(family), tiny_family(family)
    assert tried_once.same_model(first) == tried_once.same_model(second)
    found, taken = tried(first, tried_once.once)
    again, taken_again = tried(second, tried_once.once)
    assert found == again == tried(second, try_ways)[0]
    assert taken[-1] == found
    assert taken_again == [found]


def test_another_model_is_another_one() -> None:
    lm = tiny_family("gpt2")
    same = tried_once.same_model(lm)
    others = [
        tiny_family("gpt2", torch.float32),
        tiny_family("gpt2", seed=1),
        tiny_family("gpt2", n_head=1),
        tiny_family("gpt2", tie_word_embeddings=False),
        tiny_family("llama"),
    ]
    assert same is not None
    assert same not in [tried_once.same_model(other) for other in others]
    lm.model.transformer.h[1].mlp.c_proj.weight[0, 0] += 1
    assert tried_once.same_model(lm) != same


def test_code_of_its_own_is_always_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_family("gpt2")
    block = type(lm.model.transformer.h[0])
    same, plain = tried_once.same_model(lm), block.forward

    def own(self: torch.nn.Module, *given: object, **named: object) -> object:
        return plain(self, *given, **named)

    monkeypatch.setattr(block, "forward", own)
    assert tried_once.same_model(lm) != same
    lm.model.transformer.h[0].forward = plain.__get__(lm.model.transformer.h[0])
    assert tried_once.same_model(lm) is None
    other = tiny_family("gpt2")
    other.model.transformer.h[0].mlp = type("Own", (torch.nn.Identity,), {})()
    assert tried_once.same_model(other) is None


def test_a_file_that_changes_passes_outside_its_tests_shares_nothing() -> None:
    assert not tried_once.may_share(sys.modules[__name__], "test_another_model_is_another_one")


HELP = "def helper() -> None:\n    {}\n\n"
FILE = """
import pytest

@pytest.mark.parametrize("what", {marked})
def test_one(monkeypatch, what) -> None:
    {first}

class TestMany:
    def test_one(self) -> None:
        pass

    def test_two(self) -> None:
        pass
"""


@pytest.mark.parametrize(
    ("text", "one", "two"),
    [
        (FILE.format(marked=[], first="pass"), True, True),
        (FILE.format(marked=[], first="monkeypatch.setattr(a, 'b', c)"), False, True),
        (FILE.format(marked=[], first="def run(): raise MemoryError"), False, True),
        (FILE.format(marked=["replay"], first="pass"), False, True),
        (HELP.format("setattr(a, 'b', c)") + FILE.format(marked=[], first="pass"), False, False),
        ("import replay\n" + FILE.format(marked=[], first="pass"), False, False),
    ],
)
def test_a_test_that_changes_passes_shares_nothing(
    text: str, one: bool, two: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(text, encoding="utf-8")
    module = ModuleType("test_some")
    module.__file__ = str(path)
    assert tried_once.may_share(module, "test_one") == one
    assert tried_once.may_share(module, "test_two") == two
    assert tried_once.may_share(module, "test_law_of_another_file") == two
    monkeypatch.setattr(trials, "try_ways", try_ways)
    for test, shares in (("test_one", one), ("test_two", two)):
        tried_once.share(module, test)
        assert (trials.try_ways is tried_once.once) == shares
    tried_once.share(None, "test_one")
    assert trials.try_ways is try_ways
