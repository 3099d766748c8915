"""Text to token ids and to places in them, by character offsets; works for any script.

This module does not pad to the left, does not change the tokenizer, and needs no space or BOS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.errors import ModelError, RequestError, SubjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and for each token the characters [start, end) that it covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Batch:
    """Token ids, right-padded to one length (B, T), and the mask of true tokens (B, T)."""

    ids: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """The number of true tokens in each row, (B,)."""
        return self.mask.sum(dim=1)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, head: str = "") -> Encoded:
    """Token ids of *text*, with the special tokens that the tokenizer adds itself.

    A text that begins with a special token, or with *head* (that of a chat template), brings its
    own. Then the tokenizer adds none.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} has no offsets; use a fast tokenizer (tokenizer.json)"
        )
    own = brings_special(tokenizer, text) or bool(head and text.startswith(head))
    out = tokenizer(text, return_offsets_mapping=True, verbose=False, add_special_tokens=not own)
    return Encoded(list(out["input_ids"]), [(int(a), int(b)) for a, b in out["offset_mapping"]])


def brings_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether *text* begins with one of the tokenizer's special tokens, as templates do."""
    return any(text.startswith(token) for token in special_tokens(tokenizer))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the tokenizer's special tokens: BOS and EOS, and those of its chat template."""
    added = tokenizer.added_tokens_decoder.values()
    special = [str(token.content) for token in added if token.special]
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *special]) if token]


def behind(before: str, prompt: str, head: str = "") -> str:
    """*prompt* with the text *before* in front; in a chat behind *head*, where the question is."""
    if head and prompt.startswith(head):
        return f"{head}{before}{prompt[len(head) :]}"
    return f"{before}{prompt}"


def last_token_in(encoded: Encoded, start: int, end: int) -> int | None:
    """Index of the last token that shares a character with [start, end), or None."""
    touching = [i for i, (a, b) in enumerate(encoded.offsets) if a < end and b > start]
    return touching[-1] if touching else None


def subject_last(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str | None,
    context: str = "{}",
    head: str = "",
) -> tuple[list[int], int]:
    """Ids of *context* with the filled prompt at its ``{}``, and the subject's last token.

    *prompt* has one ``{}`` for the subject. *head* begins the text of a chat. Raises
    `SubjectNotFoundError` if no token ends the subject, or if the fact has no subject.
    """
    if subject is None:
        raise SubjectNotFoundError(f"the fact {prompt!r} names no subject; give one")
    before, _, after = context.partition("{}")
    text = behind(before, prompt.replace("{}", subject), head) + after
    start = len(before) + prompt.index("{}")
    encoded = encode(tokenizer, text, head)
    index = last_token_in(encoded, start, start + len(subject.rstrip()))
    if index is None:
        tokens = [text[a:b] for a, b in encoded.offsets]
        raise SubjectNotFoundError(
            f"no token of {text!r} ends the subject {subject!r} "
            f"(characters {start} to {start + len(subject)}; tokens {tokens}); "
            "use another spelling"
        )
    return encoded.ids, index


def subject_span(
    tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str | None, head: str = ""
) -> tuple[list[int], int, int]:
    """Ids of the filled prompt, and the range [start, end) of the subject's tokens.

    Raises `SubjectNotFoundError`, as `subject_last` does.
    """
    ids, last = subject_last(tokenizer, prompt, subject, head=head)
    begin = prompt.index("{}")
    offsets = encode(tokenizer, prompt.replace("{}", subject or ""), head).offsets
    touching = (i for i, (a, b) in enumerate(offsets) if a < b and b > begin)
    return ids, min(last, next(touching)), last + 1


def as_template(tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str) -> str:
    """Replace the subject in *prompt* by ``{}``, for prompts that are written out in full.

    A prompt with braces is returned unchanged. First the exact subject is searched, then without
    regard to case. Raises `SubjectNotFoundError` if the prompt does not contain it exactly once.
    """
    if "{}" in prompt or not subject:
        return prompt
    for hay, needle in ((prompt, subject), (prompt.casefold(), subject.casefold())):
        if hay.count(needle) == 1 and len(hay) == len(prompt):
            at = hay.index(needle)
            return prompt[:at] + "{}" + prompt[at + len(needle) :]
    tokens = [prompt[a:b] for a, b in encode(tokenizer, prompt).offsets]
    raise SubjectNotFoundError(
        f"the prompt {prompt!r} does not contain the subject {subject!r} exactly once, with or "
        f"without regard to case (tokens {tokens}); write {{}} in the subject's place"
    )


def with_target(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> tuple[list[int], list[int]]:
    """Ids of *prompt*, and the ids that " " + *target* adds to it; see `split_target`."""
    return split_target(tokenizer, prompt, f" {target.strip()}")


def split_target(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, head: str = ""
) -> tuple[list[int], list[int]]:
    """Ids of *prompt*, and the ids that *target* adds to it; the target begins with the joint.

    One encoding of the whole text is split at the prompt's last character. So a tokenizer that
    puts a marker before every text (SentencePiece) puts no marker inside. A token that holds
    characters of both belongs to the target.
    """
    encoded = encode(tokenizer, f"{prompt}{target}", head)
    ends = [end for _, end in encoded.offsets]
    cut = next((i for i, end in enumerate(ends) if end > len(prompt)), None)
    if cut is None:
        raise RequestError(f"the tokenizer has no token for {target!r}; use another spelling")
    added = [i for i, end in zip(encoded.ids[cut:], ends[cut:], strict=True) if end > 0]
    return encoded.ids[:cut], added


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """Rows of ids as one right-padded batch; the padding has id 0."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return Batch(ids.to(device), mask.to(device))
