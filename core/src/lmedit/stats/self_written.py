"""Text that a model writes itself, as a corpus for its own statistics (``--corpus self``).

ROME's C = E[k k^T] (equation 2) needs keys of typical text. If the user names no text, the model
writes it: the text is sampled from the model's distribution, without any other data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import ArtifactError
from lmedit.replay.products import faster_type, products
from lmedit.replay.sampling import sample_rows, start_token
from lmedit.stats.counting import Counting
from lmedit.storage.cache import cache_folder, key_of
from lmedit.storage.json_files import read_json, write_json
from lmedit.storage.steps import tell_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.types import Material

SELF = "self"
"""The name of this corpus."""
BATCH, TOKENS = 100, 64
"""How many texts are sampled together, and the tokens of each."""
TOLERANCE, MOST = 0.55, 4000
"""When to stop: the tolerance for angle and length of C^-1 k, and the largest number of texts.

`benchmarks/own_text.py` compares amounts of text.
"""


@dataclass(frozen=True)
class SelfWritten:
    """An endless corpus that *lm* writes, `BATCH` texts at a time, as far as a reader reads.

    Batch n depends only on the weights, the seed and n. Every finished batch is stored, so an
    interrupted reader, or the next one, finds it again.
    """

    lm: Lm
    seed: int = 0
    name: str = SELF

    @property
    def digest(self) -> str:
        """A digest of what determines the texts: the weights, the seed and the recipe.

        The recipe includes the number type of the products, which the device decides.
        """
        return key_of(
            corpus=SELF,
            base=self.lm.identity,
            seed=self.seed,
            batch=BATCH,
            tokens=TOKENS,
            compute=faster_type(self.lm.device),
            recipe=3,
        )

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in order; the texts never end."""
        for number in count():
            yield from self._batch(number)

    def _batch(self, number: int) -> list[str]:
        """The texts of batch *number*: the stored ones, or new ones that are then stored."""
        path = self.folder / f"{number:05}.json"
        if path.is_file() and (texts := _read(path)) is not None:
            return texts
        texts = self._write(number)
        write_json(path, texts)
        return texts

    def counting(self, asked: Counting) -> Counting:
        """How much of this text to count. *asked* is for text that already exists.

        Counting stops when the solutions have converged to `TOLERANCE`, or after `MOST` texts.
        """
        tolerance = max(TOLERANCE, asked.tolerance or 0.0)
        return Counting(MOST, "documents", asked.max_length, tolerance)

    @property
    def folder(self) -> Path:
        """The folder of the stored batches."""
        return cache_folder() / "self-written" / self.digest[:32]

    def _write(self, number: int) -> list[str]:
        random = torch.Generator().manual_seed(int(key_of(seed=self.seed, batch=number)[:15], 16))
        start, most = [start_token(self.lm)], self._tokens()
        work = f"the model writes text {BATCH * number + 1} to {BATCH * (number + 1)}, tokens"
        with products(self.lm, faster_type(self.lm.device), head=True):
            rows = sample_rows(
                self.lm, [start] * BATCH, most, random, tell=lambda n: tell_step(work, n, most)
            )
        decode = self.lm.tokenizer.decode
        return [str(decode(row[1:], skip_special_tokens=True)) for row in rows]

    def _tokens(self) -> int:
        return min(TOKENS, self.lm.max_positions - 1)


def _read(path: Path) -> list[str] | None:
    """The texts of a stored batch; None if the file is damaged, because it can be written again."""
    try:
        texts: Any = read_json(path)
    except (OSError, ValueError, ArtifactError, json.JSONDecodeError):
        return None
    good = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return texts if good else None


def text_name(material: Material) -> str:
    """The name of *material*, and for text that the model writes, a better choice."""
    if isinstance(material, SelfWritten):
        return "text that the model writes itself (better: --corpus FILE)"
    return material.name
