"""What identifies a model besides its weights: config, buffers, tokenizer, ends of texts.

Two models with the same weights give other results if their epsilon, their rotary base or their
merges differ. So keys of stored results hold the digest of all of it. Saving a model and loading it
again does not change the digest.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmedit.storage.cache import key_of
from lmedit.storage.digests import digest_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from lmedit.models.families import Family

SAID_ELSEWHERE = frozenset(
    {
        "architectures",
        "auto_map",
        "dtype",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "quantization_config",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Config entries that change no result, or that the weights or the tokenizer determine."""
TRIAL = "The tower stands by the river, since 1889.\n\tE = mc² (naïve)."
"""A sample text. Its encoding shows what a tokenizer does outside its stored parts."""


def config_digest(config: Any) -> str:
    """SHA-256 of the entries of *config* that differ from its class's defaults."""
    return _digest(_plain(config.to_diff_dict()))


def buffers_digest(model: nn.Module) -> str:
    """SHA-256 of all buffers of *model*, rounded to bfloat16: machines compute them differently."""
    rounded = (
        (name, buffer.bfloat16() if buffer.is_floating_point() else buffer)
        for name, buffer in sorted(model.named_buffers())
        if not buffer.is_meta
    )
    return digest_tensors(rounded)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what *tokenizer* does: vocabulary, merges, steps, special tokens, template."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(inner.to_str()) if inner is not None else tokenizer.get_vocab()
    if inner is not None:
        for name in ("truncation", "padding", "version"):
            parts.pop(name, None)
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _digest(
        {
            "parts": parts,
            "special": specials,
            "template": getattr(tokenizer, "chat_template", None),
            "trial": list(tokenizer(TRIAL).input_ids),
        }
    )


def ends_of(model: Any) -> list[int]:
    """The ids of end-of-text in the model's generation config, sorted."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = found if isinstance(found, list | tuple) else [found]
    return sorted(int(i) for i in several if i is not None)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """*values* without the entries of `SAID_ELSEWHERE`, at every depth."""
    return {
        name: _plain(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in SAID_ELSEWHERE and not name.startswith("_")
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Identified(ABC):
    """The part of `Lm` that identifies the model."""

    model: Any
    tokenizer: Any
    name: str
    family: Family
    base_name: str | None = None
    """The world's name of a model that has another name here: with edits in its folder, the name of
    the model without them; for a GGUF file, the name of the pulled model of that file."""

    @property
    @abstractmethod
    def parameters(self) -> frozenset[str]:
        """The names of all parameters."""

    @abstractmethod
    def weights_digest(self) -> str:
        """SHA-256 of the present weights."""

    @abstractmethod
    def digest_of(self, names: Iterable[str]) -> str:
        """SHA-256 of the present parameters *names*."""

    @property
    def world(self) -> str:
        """The name under which a world may know it: its own, or that of its base."""
        return self.base_name or self.name

    def _note_buffers(self) -> None:
        """Note the buffers of a new model; a forward pass may change some."""
        self._buffers = buffers_digest(self.model)

    _base: tuple[Any, str] | None = None
    _below_in_base: Mapping[tuple[str, int], str] = MappingProxyType({})
    """By digest of the base and layer; another number type is another digest."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights at the first call. See `identity` for the whole model.

        It is computed again if the model was converted to another number type since.
        """
        types = tuple(parameter.dtype for parameter in self.model.parameters())
        if self._base is None or self._base[0] != types:
            self.__dict__.pop("identity", None)
            self._base = types, self.weights_digest()
        return self._base[1]

    def forget_digest(self) -> str:
        """Take the present weights as the base model; return their digest."""
        self._base, self._below_in_base = None, {}
        self.__dict__.pop("identity", None)
        return self.digest

    @cached_property
    def identity(self) -> str:
        """SHA-256 of everything that decides results, at the first call.

        It covers the weights, the config, the buffers, the tokenizer and the ends of texts. Keys of
        stored results hold it.
        """
        return key_of(weights=self.digest, **self._around)

    @cached_property
    def _around(self) -> dict[str, Any]:
        """The values that identify the model besides its weights."""
        return {
            "config": config_digest(self.model.config),
            "buffers": self._buffers,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "ends": ends_of(self.model),
        }

    def base_identity_below(self, layer: int) -> str:
        """`identity_below` of the base model: as at the first call, as `digest` is."""
        base = self.digest, layer
        if base not in self._below_in_base:
            self._below_in_base = {**self._below_in_base, base: self.identity_below(layer)}
        return self._below_in_base[base]

    def identity_below(self, layer: int) -> str:
        """SHA-256 of everything that decides the keys of *layer*, as the weights are now.

        The keys are the inputs of the block's MLP output matrix. So this matrix, later blocks, and
        what follows the blocks do not count: edits there leave the digest as it is.
        """
        blocks = f"{self.family.blocks}."
        after = (f"{blocks}{layer}.{self.family.mlp_out}.", f"{self.family.norm}.")
        later = tuple(
            f"{blocks}{n}."
            for n in range(layer + 1, len(self.model.get_submodule(self.family.blocks)))
        )
        below = self.digest_of(n for n in self.parameters if not n.startswith(after + later))
        return key_of(below=below, **self._around)
