"""The measures of the group `stress`: questions that critics of model editing ask.

`metrics.stress` measures them; `metrics.stress_forms` holds the forms of the questions.
"""

from __future__ import annotations

from lmedit.compare.measure import CONTRAST, FORCED, Measure

CHECKED = "P per token of True minus that of False, after 'True or false: FACT. Answer:'"
RETURNS = "old answer more probable per token than the new one"


def _stress(
    name: str, label: str, meaning: str, protocol: str, *, less_is_better: bool = False
) -> Measure:
    return Measure(
        f"stress_{name}", label, meaning, protocol, "stress", less_is_better=less_is_better
    )


STRESS = (
    _stress(
        "negated",
        "negated",
        "share of negated prompts after which the new answer still beats the true one",
        f"{CONTRAST}; three negations before the prompt",
        less_is_better=True,
    ),
    _stress(
        "check_new", "check new", "share of cases whose new fact is judged true", f"{CHECKED} > 0"
    ),
    _stress(
        "check_old",
        "check old",
        "share of cases whose old fact is judged true",
        f"{CHECKED} > 0",
        less_is_better=True,
    ),
    _stress("check_new_margin", "check new M", "P of True minus P of False, new fact", CHECKED),
    _stress(
        "check_old_margin",
        "check old M",
        "P of True minus P of False, old fact",
        CHECKED,
        less_is_better=True,
    ),
    _stress(
        "reverse",
        "reverse",
        "share of questions from the new answer back whose answer, the subject, is right",
        f"{FORCED}, all tokens of one spelling top-1",
    ),
    _stress(
        "reverse_P",
        "reverse P",
        "P per token of the subject after these questions",
        f"{FORCED}, the most probable spelling",
    ),
    _stress(
        "old_P",
        "old P",
        "P per token of the old answer after the prompt",
        CONTRAST,
        less_is_better=True,
    ),
    Measure(
        "stress_old_rank",
        "old rank",
        "rank of the old answer's first token among all next tokens, 1 is the most probable",
        "full next-token distribution after the prompt",
        "stress",
        1.0,
    ),
    _stress(
        "returns_paraphrase",
        "returns para",
        "share of cases whose old answer beats the new one after at least one paraphrase",
        RETURNS,
        less_is_better=True,
    ),
    _stress(
        "returns_context",
        "returns ctx",
        "share of cases whose old answer beats the new one behind a sentence of the old fact",
        RETURNS,
        less_is_better=True,
    ),
    _stress(
        "suppressed",
        "suppressed",
        "share of cases whose new answer wins after the prompt, but the old one returns",
        f"{RETURNS}, after a paraphrase or behind the old fact",
        less_is_better=True,
    ),
    _stress(
        "erased",
        "erased",
        "share of cases whose new answer wins after the prompt, and the old one never returns",
        f"{RETURNS}, after a paraphrase or behind the old fact",
    ),
)
"""The measures of the group, in the order of the columns."""
