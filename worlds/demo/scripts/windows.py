"""Windows of tokens for training, packed from sentences, some with an edit to imitate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sentences import END, Edit, Sentence, TextSampler

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

WEIGHT_SUBJECT, WEIGHT_PROMPT, WEIGHT_ANSWER, WEIGHT_GENERAL = 0.2, 0.4, 1.5, 1.0
"""Loss weights: names need not be predicted, answers must be."""

BARE_TOKENS = 12
"""Longest bare prompt of an edit in tokens."""


@dataclass(frozen=True)
class Batch:
    """Token ids, loss weights of predicting each token, subject mention numbers and last marks.

    `asked` (batch, time) is 1 at the answers that the windows' edits ask for. `last` holds the
    subject's number at its last tokens, 0 elsewhere. One subject of each window stands for an
    edit's: it ends at `own` (batch,), `bare` (batch, BARE_TOKENS) are the tokens of its name alone,
    `bare_last` (batch,) is the end of that. `edit` (batch,) numbers the window's edit, 0 for none.
    """

    ids: Tensor
    weights: Tensor
    subject: Tensor
    last: Tensor
    asked: Tensor
    edit: Tensor
    own: Tensor
    bare: Tensor
    bare_last: Tensor


Token = tuple[int, float, int, int, float]
"""Id, loss weight, subject mention, last-token mark, asked for: one entry of each field."""


@dataclass(frozen=True)
class Window:
    """The tokens of a window, its edit, and its chosen subject: the name and where it ends."""

    tokens: list[Token]
    edit: Edit | None
    name: str
    own: int


class Windows:
    """Packs the sampler's sentences into windows of tokens."""

    def __init__(self, sampler: TextSampler, tokenizer: Tokenizer) -> None:
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.end = int(tokenizer.token_to_id(END) or 0)
        self.stream = sampler.stream()
        self.waiting: tuple[str, Sentence] | None = None
        pairs = [(key, a) for key, answers in sorted(sampler.answers.items()) for a in answers]
        self.edits = {pair: number for number, pair in enumerate(pairs, start=1)}
        self.numbers = {s.name: i for i, s in enumerate(sampler.world.subjects, start=1)}

    def encode(self, lead: str, sentence: Sentence) -> tuple[list[int], list[float], int]:
        """Token ids, loss weights and the index after the subject's last token (0 for none).

        The tokens of the subject itself are those that carry its weight.
        """
        lead_ids = [self.end] if lead == END else []
        prefix = "" if lead == END else lead
        coded = self.tokenizer.encode(prefix + sentence.text)
        spans = [(a + len(prefix), b + len(prefix)) for a, b in sentence.subjects]
        answer = sentence.answer
        base = WEIGHT_PROMPT if spans else WEIGHT_GENERAL
        weights, stop = [WEIGHT_PROMPT] * len(lead_ids), 0
        for index, (start, finish) in enumerate(coded.offsets):
            weight = base
            if any(start < b and finish > a for a, b in spans):
                weight, stop = WEIGHT_SUBJECT, len(lead_ids) + index + 1
            elif answer and start < answer[1] + len(prefix) and finish > answer[0] + len(prefix):
                weight = WEIGHT_ANSWER
            weights.append(weight)
        return lead_ids + coded.ids, weights, stop

    def window(self, length: int, edited: bool) -> Window:
        """One window of whole sentences, filled up with end-of-text of weight 0.

        An edited window begins with an edit's scene, cut short where it does not fit.
        """
        tokens: list[Token] = []
        edit, name, own, mentions = None, "", 0, 0
        scene = [(" ", sentence) for sentence in self.sampler.edit_scene()] if edited else []
        while True:
            of_scene = bool(scene)
            joiner, sentence = scene.pop(0) if scene else self.waiting or next(self.stream)
            if not of_scene:
                self.waiting = None
            ids, weights, stop = self.encode(joiner if tokens else "", sentence)
            if len(tokens) + len(ids) > length:
                if of_scene:
                    continue
                # A sentence longer than a whole window would wait for ever.
                self.waiting = (joiner, sentence) if tokens else None
                if tokens:
                    break
                continue
            mentions += 1
            if sentence.edit or (stop and edit is None):
                edit, name, own = sentence.edit, sentence.subject, len(tokens) + stop - 1
            number = self.numbers.get(sentence.subject, 0)
            for place, (token, weight) in enumerate(zip(ids, weights, strict=True), start=1):
                mention = mentions if weight == WEIGHT_SUBJECT else 0
                asked = float(sentence.edit is not None and weight == WEIGHT_ANSWER)
                tokens.append((token, weight, mention, number if place == stop else 0, asked))
        gap = length - len(tokens)
        closing: list[Token] = [(self.end, WEIGHT_PROMPT, 0, 0, 0.0)]
        tokens += (closing + [(self.end, 0.0, 0, 0, 0.0)] * gap)[:gap]
        return Window(tokens, edit, name, own)

    def batch(self, count: int, length: int, edited: int) -> Batch:
        """A batch of windows, the first `edited` of them with an edit."""
        windows = [self.window(length, number < edited) for number in range(count)]
        rows = [zip(*window.tokens, strict=True) for window in windows]
        columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
        edits = [self.edits[w.edit.relation, w.edit.answer] if w.edit else 0 for w in windows]
        names = [self.tokenizer.encode(w.name).ids[:BARE_TOKENS] for w in windows]
        bare = [ids + [self.end] * (BARE_TOKENS - len(ids)) for ids in names]
        ends = [max(0, len(ids) - 1) for ids in names]
        own = [window.own for window in windows]
        return Batch(*columns, *map(torch.tensor, (edits, own, bare, ends)))
