"""The contexts x_j of equation 3: short texts that the model writes, and the empty one."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

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


@torch.no_grad()
def sample_texts(
    lm: Lm, start: str, new_tokens: int, count: int, random: torch.Generator
) -> list[str]:
    """Sample *count* texts of *new_tokens* tokens behind *start*, each token from the best 5.

    An empty *start* means the model's BOS (or EOS) token, which is not part of the texts. A *start*
    of words is part of them.
    """
    head = [_start_token(lm)] if not start else lm.encode(start)
    rows = [list(head) for _ in range(count)]
    cache = DynamicCache()
    for _ in range(new_tokens):
        # All rows have one length, so nothing is padded; the cache holds the earlier tokens.
        new = torch.tensor([row[cache.get_seq_length() :] for row in rows], device=lm.device)
        out = lm.model(input_ids=new, past_key_values=cache, use_cache=True)
        for row, token in zip(
            rows, _top_k_draw(out.logits[:, -1].float().cpu(), random), strict=True
        ):
            row.append(int(token))
    skip = 0 if start else 1
    tokenizer = lm.tokenizer
    return [str(tokenizer.decode(row[skip:], skip_special_tokens=True)) for row in rows]


def _top_k_draw(logits: Tensor, random: torch.Generator) -> Tensor:
    best = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1)
    drawn = torch.multinomial(best.values.softmax(-1), 1, generator=random)
    return best.indices.gather(1, drawn).squeeze(1)


def _start_token(lm: Lm) -> int:
    for token in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return int(lm.encode("The")[0])
