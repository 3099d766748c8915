"""The invariants of joint methods, T1 to T31, and the test that holds each; the list cannot rot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EQUATIONS = "plugins/memit/tests/test_memit_equations.py"
EDITS = "plugins/memit/tests/test_memit_edit.py"
ULTRA = "plugins/ultraedit/tests/test_ultraedit_equations.py"
FACTS = "tests/together/test_many_facts.py"

HELD = {
    1: (EQUATIONS, "the mean of k^T C^-1 k is D"),
    2: (EQUATIONS, "MEMIT of one fact at one layer is a share of ROME's change"),
    3: (EQUATIONS, "what MEMIT leaves of the residual"),
    4: (EQUATIONS, "no order of facts"),
    5: (EQUATIONS, "a contradiction is one key of weight two"),
    6: (EQUATIONS, "another basis of the keys"),
    7: (EQUATIONS, "remembered batches are the joint solution"),
    8: (EQUATIONS, "the last batch can be subtracted"),
    9: (EQUATIONS, "both forms of the solution are equal"),
    10: (EQUATIONS, "ENCORE's recursion is RLSEdit's optimum"),
    11: (EQUATIONS, "EMMET is exact"),
    12: (EQUATIONS, "EMMET's softness is a weight"),
    13: (EQUATIONS, "EMMET with memory"),
    14: (FACTS, "EMMET refuses two equal keys by name"),
    15: (EQUATIONS, "the projector"),
    16: (EQUATIONS, "the bound by the threshold"),
    17: (EQUATIONS, "the symmetric form is the shipped one"),
    18: (EQUATIONS, "the scale of the keys"),
    19: (EQUATIONS, "BetaEdit, and its renewal"),
    20: (EDITS, "sites and ranks"),
    21: (EQUATIONS, "the spread over layers"),
    22: (EDITS, "one layer of several is the path of one layer"),
    23: (EDITS, "keys as if are keys with the weights written"),
    24: (ULTRA, "UltraEdit's two forms, and its rank"),
    25: (ULTRA, "merged moments"),
    26: ("plugins/ft/tests/test_breadth.py", "peft's merged delta"),
    27: (ULTRA, "MALMEN at the start"),
    28: ("plugins/ft/tests/test_breadth.py", "one step of LocFT-BF is one of FT"),
    30: (EDITS, "a target does not depend on the other facts"),
    31: ("core/src/lmedit/testing/__init__.py", "a carry is saved and loaded"),
}
"""By number: the file with the test, and what the test holds."""
NO_SUBJECT = {29: "no method keeps a codebook, so GRACE's lookup does not exist"}
NAMES = {14: "test_emmet_refuses_a_contradiction_by_name", 31: "test_law_11_carry_is_plain"}


def test_every_invariant_is_held_or_has_no_subject() -> None:
    assert sorted(HELD | NO_SUBJECT) == list(range(1, 32))


@pytest.mark.parametrize("number", HELD)
def test_the_file_has_the_test(number: int) -> None:
    path, _ = HELD[number]
    wanted = NAMES.get(number, f"test_t{number}_")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {wanted}", text, re.MULTILINE), f"{path} has no {wanted}"
