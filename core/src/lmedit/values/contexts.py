"""The contexts x_j of equation 3: short texts that the model writes, and the empty one."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from lmedit.replay.sampling import sample_rows, start_token

if TYPE_CHECKING:
    from collections.abc import Hashable

    from lmedit.models import Lm
    from lmedit.values.options import ValueOptions

BARE = "{}"
TOP_K = 5


def sample_contexts(lm: Lm, options: ValueOptions) -> list[str]:
    """Templates with one ``{}`` for the prompt: the bare one if asked for, then the sampled ones.

    They depend only on the model's weights and the options, not on the request. So lmedit samples
    them once per state of a model.
    """
    known = _KNOWN.setdefault(lm, {})
    fields = (
        "seed",
        "include_bare",
        "prefixes",
        "prefix_start",
        "prefix_join",
        "length_counts_start",
    )
    key = lm.state(), *(getattr(options, name) for name in fields)
    if key not in known:
        known[key] = _contexts(lm, options)
    return list(known[key])


_KNOWN: WeakKeyDictionary[Lm, dict[Hashable, list[str]]] = WeakKeyDictionary()


def _contexts(lm: Lm, options: ValueOptions) -> list[str]:
    random = torch.Generator().manual_seed(options.seed)
    templates = [BARE] if options.include_bare or not options.prefixes else []
    for length, count in options.prefixes:
        for start, times in _starts(options.prefix_start, count):
            for text in sample_texts(lm, start, _new_tokens(length, options), times, random):
                templates.append(clean(text) + options.prefix_join + BARE)
    return templates


def _starts(start: str | tuple[str, ...], count: int) -> list[tuple[str, int]]:
    """The texts that *count* contexts begin with, and how many begin with each."""
    if isinstance(start, str):
        return [(start, count)]
    share, more = divmod(count, len(start))
    each = [(text, share + (place < more)) for place, text in enumerate(start)]
    return [(text, times) for text, times in each if times]


def _new_tokens(length: int, options: ValueOptions) -> int:
    """The number of tokens to sample; the released code counts the start token in the length."""
    return max(1, length - 1 if options.length_counts_start else length)


def clean(text: str) -> str:
    """Normalise *text* (NFKD), join its paragraphs, and remove braces: ``{}`` is for the prompt."""
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return text.replace("{", "").replace("}", "")


def sample_texts(
    lm: Lm, start: str, new_tokens: int, count: int, random: torch.Generator
) -> list[str]:
    """Sample *count* texts of *new_tokens* tokens behind *start*, each token from the best 5.

    An empty *start* means the model's BOS (or EOS) token, which is not part of the texts. A *start*
    of words is part of them.
    """
    head = lm.encode(start) if start else [start_token(lm)]
    rows = sample_rows(lm, [head] * count, new_tokens, random, TOP_K)
    skip = 0 if start else 1
    return [str(lm.tokenizer.decode(row[skip:], skip_special_tokens=True)) for row in rows]
