"""A tiny model folder, a record and a fact, for the tests of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from pathlib import Path

FACT = ("--prompt", "{} is in the city of", "--subject", "The tower", "--target", "the sea")


def save_model(folder: Path, seed: int) -> Path:
    """Write a tiny random model to *folder*."""
    lm = tiny_lm(seed)
    lm.model.float().save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def record(case_id: int, subject: str = "The tower") -> dict[str, Any]:
    """A record in CounterFact's official layout."""
    return {
        "case_id": case_id,
        "pararel_idx": case_id,
        "requested_rewrite": {
            "prompt": "{} is in the city of",
            "relation_id": "P131",
            "target_new": {"str": "the sea", "id": "Q1"},
            "target_true": {"str": "the river", "id": "Q2"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"In the morning. {subject} stands in", f"{subject} is by"],
        "neighborhood_prompts": ["The boat is in the city of", "The old river is in the city of"],
        "attribute_prompts": ["The night is in the city of"],
        "generation_prompts": [f"{subject} is"],
    }
