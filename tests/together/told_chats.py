"""A tiny model whose tokenizer puts a start token before texts, and chat templates for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import processors

if TYPE_CHECKING:
    from lmedit.models import Lm

BOS = "<s>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPACED = TEMPLATE.replace("<|assistant|>\n{% endif", "<|assistant|>{% endif").replace(
    "\n{{ m.content }}", "{{ ' ' if m.role == 'assistant' else '\n' }}{{ m.content }}"
)
"""A template that writes a blank between its end and the answer, as Llama 2's does."""


def with_bos(lm: Lm, template: str | None = TEMPLATE) -> Lm:
    """*lm* with a tokenizer that puts BOS before every text, and with a chat template."""
    tokenizer = lm.tokenizer
    tokenizer.add_special_tokens({"bos_token": BOS})
    number = tokenizer.convert_tokens_to_ids(BOS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, number)]
    )
    tokenizer.chat_template = template
    lm.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return lm
