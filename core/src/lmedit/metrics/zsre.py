"""zsRE's scores by ROME's protocol (Meng et al. 2022, section 3.2).

Efficacy, paraphrase and specificity are shares of target tokens that are the model's top-1. The
prompt contains all target tokens before. Specificity is absolute accuracy on the locality answer.
It is not agreement with the unedited model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.metrics.counterfact import mean
from lmedit.replay.batches import BATCH_TOKENS, encode_prompt, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits


@dataclass(frozen=True)
class ZsreScores:
    """The shares of one record in [0, 1]; None if it has no such prompts."""

    efficacy: float | None
    paraphrase: float | None
    specificity: float | None


def string_hits(
    lm: Lm,
    pairs: Sequence[tuple[str, str]],
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> list[list[bool]]:
    """For each (prompt, target) and each token i of joint + target: is it top-1, by strings?

    The joint is that of `Lm.parts`; in ROME's code it is a blank. Blanks at the end of a target are
    tokens of the target, as there. The prompt is
    ``prompt + decode(target[:i])``, encoded again. The first id of ``decode(target[i])`` is right
    (ROME `eval_utils_zsre.py:test_batch_prediction_acc`). So a token that is part of a character
    can never be right. Targets are encoded without special tokens, as in MEMIT's successors.
    """
    prompts: list[list[int]] = []
    wanted: list[int | None] = []
    counts: list[int] = []
    for prompt, target in pairs:
        before, answer = lm.parts(prompt, target)
        end = target[len(target.rstrip(" ")) :]
        ids = _plain_ids(lm, answer + end)
        counts.append(len(ids))
        for i, token in enumerate(ids):
            prompts.append(encode_prompt(lm, before + lm.decode(ids[:i])))
            wanted.append(next(iter(_plain_ids(lm, lm.decode([token]))), None))

    def read(i: int, logits: Tensor) -> bool:
        return int(logits[-1].argmax()) == wanted[i]

    last = [[len(ids) - 1] for ids in prompts]
    each = under and under.repeat(counts)
    hits = iter(read_rows(lm, prompts, read, batch_tokens, last, each))
    return [[next(hits) for _ in range(count)] for count in counts]


def zsre_scores(
    lm: Lm,
    target: str,
    rewrite: str,
    paraphrases: Sequence[str],
    locality: Sequence[tuple[str, str]],
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> ZsreScores:
    """The scores of one record: means over all target tokens of all prompts of a kind.

    *rewrite* and *paraphrases* are filled prompts for *target*. *locality* are prompts with their
    own answers; ROME reads them from the MEND file as ``loc + "?"`` and ``loc_ans``. *under*
    is the edit to score with.
    """
    pairs = [(prompt, target) for prompt in (rewrite, *paraphrases)] + list(locality)
    found = string_hits(lm, pairs, batch_tokens, under and under.repeat([len(pairs)]))
    cut = 1 + len(paraphrases)
    return ZsreScores(_share(found[:1]), _share(found[1:cut]), _share(found[cut:]))


def _share(hits: Sequence[Sequence[bool]]) -> float | None:
    return mean([float(hit) for row in hits for hit in row])


def _plain_ids(lm: Lm, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
