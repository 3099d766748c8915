"""The facts that `compare` and `tune` take when the user names none."""

from __future__ import annotations

import pytest

from lmedit.plan import Plan


@pytest.mark.parametrize(
    ("model", "cases", "taken"),
    [
        ("demo", None, "demo"),
        ("smollm2", None, "smollm2"),
        ("smollm2", "demo", "demo"),
        ("folder/of/a/model", None, "demo"),
    ],
)
def test_the_facts_of_the_models_own_world_are_the_default(
    model: str, cases: str | None, taken: str
) -> None:
    """A model that has a world is judged by the facts that it knows."""
    found = Plan(model=model, cases=cases).load_cases(2)
    assert (found.name, len(found.items)) == (taken, 2)


def test_the_facts_of_a_paper_come_before_those_of_the_world() -> None:
    """A default of the caller wins; the user's name wins over both."""
    assert Plan(model="smollm2").load_cases(1, "demo").name == "demo"
    assert Plan(model="demo", cases="smollm2").load_cases(1, "demo").name == "smollm2"
