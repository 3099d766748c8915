"""Test whether the neurons carry the fact: silence and double them, and random ones."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from lmedit.replay import keep
from lmedit_kn.neurons import scaled
from lmedit_kn.selection import asking, questions

if TYPE_CHECKING:
    from lmedit import Lm, Request
    from lmedit_kn.neurons import Neuron
    from lmedit_kn.options import KnOptions
    from lmedit_kn.selection import Question

DRAWS = 5
"""Number of random sets, each as large as the set of the found neurons; means are reported."""


@torch.no_grad()
def probe_neurons(
    lm: Lm, request: Request, neurons: list[Neuron], answer: str, options: KnOptions
) -> dict[str, Any]:
    """Relative changes of the answer's probability, in percent (section 4.3 of Dai et al.).

    The mean over all prompts that ask for the fact; activations change at the last token alone.
    They change where they meet the values, also where the neurons were found by what the
    activation function takes: to double a negative input of that would silence the neuron.
    """
    asked = [
        question
        for text in asking(request, options, lm)
        for question in questions(lm, text, answer, options)
    ]
    others = _random(lm, len(set(neurons)), options)
    before = _probability(lm, asked, [], 1.0)
    found: dict[str, Any] = {"neurons": len(set(neurons)), "p(answer)": before}
    for name, factor in (("silenced", 0.0), ("doubled", 2.0)):
        with_them = _probability(lm, asked, neurons, factor)
        found[f"{name}, %"] = 100 * (with_them / before - 1)
        random_ones = [_probability(lm, asked, some, factor) for some in others]
        found[f"random {name}, %"] = 100 * (sum(random_ones) / len(random_ones) / before - 1)
    return found


def _random(lm: Lm, count: int, options: KnOptions) -> list[list[Neuron]]:
    """Sets of *count* neurons from all layers, drawn with the options' seed."""
    draw = random.Random(options.seed)  # noqa: S311  (no secret)
    everything = [(at, place) for at in lm.editable for place in range(lm.mlp_width(at))]
    return [draw.sample(everything, count) for _ in range(DRAWS)]


def _probability(lm: Lm, asked: list[Question], neurons: list[Neuron], factor: float) -> float:
    """The mean probability of the questions' tokens."""
    found = []
    for ids, token in asked:
        kept = keep(lm, [ids], [len(ids) - 1], 0)
        with scaled(lm, neurons, factor):
            logits = kept.logits([0])[0, 0]
        found.append(float(logits.float().softmax(-1)[token]))
    return sum(found) / len(found)
