"""The selection of a request's neurons: the prompts, the answer, and the two stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import RequestError
from lmedit.replay.products import products
from lmedit.storage.steps import tell_step
from lmedit_kn.equations import coarse, shared_mask, threshold_of
from lmedit_kn.staircase import Attributions, attributions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request
    from lmedit_kn.neurons import Neuron
    from lmedit_kn.options import KnOptions


Question = tuple[list[int], int]
"""Token ids, and the token whose probability behind them counts."""


@dataclass(frozen=True)
class Selection:
    """The selected neurons, and the neurons that each stage kept."""

    answer: str
    probability: float
    """The mean probability of the answer's tokens behind the request's prompt."""
    coarse: Tensor  # (n, L, D), one for each prompt
    refined: Tensor  # (L, D)
    scores: Tensor  # (L, D), the mean over the prompts
    finer: tuple[int, ...] = ()
    missed: float | None = None
    """Of all prompts, as of `Attributions`."""

    @property
    def neurons(self) -> list[Neuron]:
        """The neurons by layer and place."""
        return [(int(layer), int(place)) for layer, place in self.refined.nonzero()]

    def evidence(self) -> dict[str, Any]:
        """The values that `locate` prints: the count after each stage, and the neurons."""
        last = [[layer, place, float(self.scores[layer, place])] for layer, place in self.neurons]
        return {
            "answer": self.answer,
            "p(answer)": self.probability,
            "prompts": len(self.coarse),
            "layers with more points": list(self.finer),
            "sum of a layer missed by": self.missed,
            "neurons in all": self.refined.numel(),
            "after coarse": [int(chosen.sum()) for chosen in self.coarse],
            "after fine": len(last),
            "coarse by layer": self.coarse.float().mean(0).sum(1).tolist(),
            "fine by layer": self.refined.sum(1).tolist(),
            "neurons": sorted(last, key=lambda neuron: -neuron[2]),
        }


def select(lm: Lm, request: Request, options: KnOptions) -> Selection:
    """The request's neurons (sections 3.1 and 3.2 of Dai et al.).

    Raises `RequestError` if no neuron is left, or if the present answer is blank.
    """
    answer = request.target_true or present_answer(lm, request)
    asked = asking(request, options, lm)
    found = _score_all(lm, [*asked, *options.negative_prompts], answer, options)
    kept = [coarse(of.scores, threshold_of(of.scores, *options.criterion)) for of in found]
    scores, each = found[: len(asked)], torch.stack(kept[: len(asked)])
    refined = shared_mask(each, options.share) if options.refine else each.any(0)
    for others in kept[len(asked) :]:
        refined &= ~others
    if not refined.any():
        raise RequestError(
            "kn: no neuron is left after the selection; lower share or adaptive_threshold"
        )
    mean = torch.stack([found.scores for found in scores]).mean(0)
    settled = finer_and_missed(scores)
    return Selection(answer, scores[0].probability, each, refined, mean, *settled)


def asking(request: Request, options: KnOptions, lm: Lm | None = None) -> list[str]:
    """The texts that ask for the fact: the request's own first, then those of the options.

    In the chat of *lm*, all of them are inside the user's message.
    """
    frames = [frame.partition("{}") for frame in options.frames]
    own = [
        (lm.behind(before, request.text) if lm else before + request.text) + after
        for before, _, after in frames
    ]
    if options.prompts and request.subject is None:
        raise RequestError("kn: the option prompts needs the subject of the fact; name it")
    others = [prompt.replace("{}", request.subject or "") for prompt in options.prompts]
    if lm and lm.chat:
        others = list(map(lm.chat.wrap, others))
    return list(dict.fromkeys([request.text, *own, *others]))


def present_answer(lm: Lm, request: Request) -> str:
    """The token that the model holds most probable after the request's prompt."""
    return lm.decode([int(lm.next_probabilities(request.text).argmax())]).strip()


def tokens_of(lm: Lm, text: str, answer: str, options: KnOptions) -> tuple[list[int], list[int]]:
    """Ids of *text*, and of *answer* behind it: with a space between, or as the release has it."""
    prompt, target = lm.with_target(text, answer)
    if not options.leading_space:
        target = list(lm.tokenizer(answer.strip(), add_special_tokens=False)["input_ids"])
    return prompt, target


def questions(lm: Lm, text: str, answer: str, options: KnOptions) -> list[Question]:
    """For each token of *answer* the ids before it, as `answer_tokens` says."""
    prompt, target = tokens_of(lm, text, answer, options)
    forced = options.answer_tokens == "teacher_forced"
    return [(prompt + target[:i] if forced else prompt, token) for i, token in enumerate(target)]


class _Progress:
    """Tells how many layers are integrated, of those of all questions."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def __call__(self, layers: int) -> None:
        """Tell of *layers* more."""
        self.done += layers
        tell_step("integrated gradients, layers", self.done, self.total)


def _score_all(lm: Lm, texts: Sequence[str], answer: str, options: KnOptions) -> list[Attributions]:
    """The attributions of each of *texts*; see `_scores`."""
    asked = [questions(lm, text, answer, options) for text in texts]
    progress = _Progress(len(lm.editable) * sum(map(len, asked)))
    found: list[Attributions] = []
    with products(lm, options.compute, head=True):
        for text, each in zip(texts, asked, strict=True):
            finer = found[-1].finer if found else ()
            found.append(_scores(lm, text, each, options, progress, finer))
    return found


def _scores(
    lm: Lm,
    text: str,
    asked: Sequence[Question],
    options: KnOptions,
    progress: _Progress,
    finer: tuple[int, ...],
) -> Attributions:
    """The attributions (L, D) and the probability, as means over the questions of *text*.

    *finer* are the layers that took more points behind the texts before.
    """
    found: list[Attributions] = []
    for question in asked:
        found.append(attributions(lm, *question, options, progress, finer))
        finer = found[-1].finer
    if not found:
        raise RequestError(
            f"kn: the present answer after {text!r} is blank; give one with --target-true"
        )
    scores = torch.stack([each.scores for each in found]).mean(0)
    probability = sum(each.probability for each in found) / len(found)
    return Attributions(scores, probability, *finer_and_missed(found))


def finer_and_missed(found: Sequence[Attributions]) -> tuple[tuple[int, ...], float | None]:
    """The layers that took more points in any of *found*, and the largest error of a sum."""
    finer = tuple(sorted({layer for each in found for layer in each.finer}))
    missed = [each.missed for each in found if each.missed is not None]
    return finer, max(missed, default=None)
