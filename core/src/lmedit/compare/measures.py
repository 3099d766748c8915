"""All measures of a comparison: the column, the meaning, and how each is measured."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from lmedit.compare.measure import CONTRAST, FORCED, Measure
from lmedit.compare.stress_measures import STRESS

if TYPE_CHECKING:
    from collections.abc import Mapping

GREEDY = "greedy until end-of-text or 20 new tokens, after the rewrite prompt"
TOKENS = "teacher-forced token accuracy, prompt and target joined as strings (ROME)"
FREE = "greedy until end-of-text or 50 new tokens, in the chosen form of prompt"
STRICT = f"{FREE}; cut at the first full stop or line end (WILD)"
SENTENCE = f"{FREE}; cut at the end of the first sentence"
FOLLOWS = "portability/"
"""The prefix of a probe group's score; the data set's name of the group follows."""
HALF_WIDTH = "_ci"
"""The suffix of a score's name in a row for half of its 95 % interval."""
SPREAD = "_sd"
"""The suffix of a number's name in a row for its standard deviation over seeds."""


def _probability(name: str, meaning: str) -> Measure:
    return Measure(name, name, meaning, CONTRAST)


def _zsre(name: str, label: str, meaning: str) -> Measure:
    return Measure(name, label, meaning, TOKENS)


def _wild(name: str, label: str, meaning: str, protocol: str) -> Measure:
    return Measure(name, label, meaning, protocol, "wild")


def _cost(name: str, label: str, meaning: str, scale: float = 1.0, digits: int = 2) -> Measure:
    return Measure(
        name, label, meaning, scale=scale, digits=digits, less_is_better=True, of_case=False
    )


_SCORES = (
    Measure("S", "S", "harmonic mean of ES, PS and NS", CONTRAST, of_case=False),
    _probability(
        "ES", "efficacy: share of cases whose new answer is more probable per token than the true"
    ),
    _probability("PS", "the same after paraphrases of the prompt"),
    _probability("NS", "specificity: share of neighbouring subjects whose true answer still wins"),
    _probability(
        "EM", "P per token of the new answer minus that of the true answer, after the prompt"
    ),
    _probability("PM", "the same after paraphrases"),
    _probability(
        "NM",
        "P per token of the true answer minus that of the new answer, for neighbouring subjects",
    ),
    Measure(
        "GE",
        "GE",
        "fluency: entropy of the n-grams in the model's text, 100 x bits",
        "2/3 bigram + 4/3 trigram entropy, top-5 sampling to 100 tokens; words by \\w+|[^\\w\\s]",
        "text",
    ),
    Measure(
        "RS",
        "RS",
        "consistency: cosine of the model's text and reference texts",
        "tf-idf with the given vocabulary, all generations joined",
        "text",
    ),
    Measure(
        "relation_specificity",
        "RelS",
        "share of the edited subject's other facts that are still right",
        "teacher-forced, all target tokens top-1",
    ),
    _zsre("efficacy", "zsRE eff", "share of the new answer's tokens that are top-1"),
    _zsre("paraphrase", "zsRE para", "the same after paraphrases"),
    _zsre("specificity", "zsRE spec", "share of right tokens on questions about something else"),
    Measure(
        "zsre_S",
        "zsRE S",
        "harmonic mean of the three shares of zsRE",
        TOKENS,
        of_case=False,
    ),
    Measure(
        "exact_match",
        "exact",
        "share of cases in which the model writes just the new answer",
        GREEDY,
        "generation",
    ),
    Measure(
        "contains",
        "contains",
        "share of cases in which the model's text contains the new answer",
        GREEDY,
        "generation",
    ),
    Measure(
        "teacher_forced",
        "forced",
        "share of cases whose new answer is top-1 at every token",
        FORCED,
        "generation",
    ),
    Measure(
        "generation_gap",
        "gap",
        "teacher-forced success minus `contains`: the failures that forcing hides",
        f"{FORCED} minus greedy",
        "generation",
        less_is_better=True,
    ),
    _wild(
        "wild_strict", "wild", "share of cases whose free answer is exactly the new answer", STRICT
    ),
    _wild("wild_strict_paraphrase", "wild P", "the same after paraphrases", STRICT),
    _wild("wild_strict_ceiling", "ceiling", "share of cases that could be right at all", STRICT),
    _wild(
        "wild_sentence",
        "wild sent",
        "share of cases whose first sentence is exactly the new answer",
        SENTENCE,
    ),
    _wild("wild_sentence_paraphrase", "wild sent P", "the same after paraphrases", SENTENCE),
    _wild("wild_sentence_ceiling", "ceiling sent", "share of cases that could be right", SENTENCE),
    _wild(
        "wild_locality",
        "wild loc",
        "share of neighbours and other questions with the same tokens as the unedited model's",
        f"{FREE}, up to the first full stop or line end",
    ),
    Measure(
        "wild_runs_on",
        "runs on",
        "share of cases whose free answer begins with the new answer and goes on",
        FREE,
        "wild",
        less_is_better=True,
    ),
    Measure(
        "NS_plus",
        "NS+",
        "NS with the edit's own sentence in front of the prompt",
        f"{CONTRAST}; CounterFact+",
        "locality",
    ),
    Measure(
        "NM_plus",
        "NM+",
        "NM with the edit's own sentence in front of the prompt",
        f"{CONTRAST}; CounterFact+",
        "locality",
    ),
    Measure(
        "neighbour_KL",
        "NKL",
        "KL(base || edited) of the next token on neighbours, nats",
        "full next-token distribution at the prompt's last token",
        "locality",
        1.0,
        3,
        less_is_better=True,
    ),
    *STRESS,
    Measure(
        "essence",
        "essence",
        "perplexity of the subject's own texts",
        "first 100 tokens, N counts them all",
        "text",
        1.0,
        1,
        less_is_better=True,
    ),
    Measure(
        "perplexity",
        "ppl",
        "perplexity on held-out text after the edit",
        "exp of the mean negative log-likelihood per token",
        "health",
        1.0,
        2,
        less_is_better=True,
    ),
    Measure(
        "KL",
        "KL",
        "KL(base || edited) on held-out text, nats per token",
        "mean over held-out tokens",
        "health",
        1.0,
        4,
        less_is_better=True,
    ),
    Measure(
        "spectral_growth",
        "sigma",
        "largest singular value after over before, worst tensor",
        "exact up to 1024 rows or columns, else power iteration",
        "health",
        1.0,
        3,
        less_is_better=True,
    ),
    Measure(
        "relative_norm",
        "|dW|/|W|",
        "norm of the change / norm of the matrix, worst tensor",
        "Frobenius",
        "",
        1.0,
        4,
        less_is_better=True,
    ),
    Measure(
        "survival",
        "survives",
        "share of the change that survives rounding to half precision, worst tensor",
        "at the change's own key; full precision: not measured",
    ),
)
_COSTS = (
    _cost(
        "seconds_per_edit",
        "s/edit",
        "seconds to compute one edit, without scoring; an equal share "
        "if a method computes several together",
    ),
    _cost("prepare_seconds", "prepare s", "seconds of preparation, once per model"),
    _cost("seconds_amortised", "s/edit all", "seconds per edit plus its share of the preparation"),
    _cost(
        "peak_mebibytes",
        "peak MiB",
        "peak memory while an edit is computed, with the model",
        digits=0,
    ),
    _cost("predicted_mebibytes", "plan MiB", "predicted peak memory of an edit", digits=0),
    _cost("patch_bytes", "patch kB", "bytes of an edit's tensors", 1e-3, 1),
)
_ALL = (*_SCORES, *_COSTS)
MEASURES: Mapping[str, Measure] = MappingProxyType({measure.name: measure for measure in _ALL})
"""All measures by name, in the order of the columns."""
COLLAPSE = 10.0
"""A model has collapsed if its perplexity grew by this factor."""
HELDOUT_LINES = 40
"""How many lines of held-out text the health metrics read by default."""
GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "generation": "greedy generation next to teacher forcing: exact, contains, the gap",
        "wild": "free answers as papers on real use score them, with ceilings",
        "locality": "CounterFact+ (NS+, NM+) and KL on neighbours",
        "stress": "negated, true-or-false and reverse questions; is the old answer gone",
        "text": "GE, RS and essence; it samples up to ten texts of 100 tokens per case",
        "health": "perplexity and KL on held-out text, singular values",
    }
)
"""The optional groups of `--metrics`."""


def measure(name: str) -> Measure | None:
    """The measure of the column *name*; None if this version does not know the column."""
    if name in MEASURES:
        return MEASURES[name]
    if name.startswith(FOLLOWS) and not name.endswith((HALF_WIDTH, SPREAD)):
        group = name.removeprefix(FOLLOWS)
        meaning = f"share of the probes of {group!r} that are right"
        return Measure(name, group, meaning, "teacher-forced, all tokens of one spelling top-1")
    return None


def sort_columns(names: set[str]) -> list[str]:
    """Sort *names* as columns: scores, groups of probes, costs, then unknown names."""
    scores, costs = ([m.name for m in part if m.name in names] for part in (_SCORES, _COSTS))
    rest = sorted(names - set(MEASURES))
    groups = [name for name in rest if measure(name)]
    return [*scores, *groups, *costs, *(name for name in rest if not measure(name))]


def protocol(groups: frozenset[str]) -> dict[str, str]:
    """How a comparison with *groups* measures each score; part of the key of every result."""
    return {
        measure.name: measure.protocol
        for measure in _ALL
        if measure.protocol and (not measure.group or measure.group in groups)
    }
