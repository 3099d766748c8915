"""Small random models of every family, built in memory for tests."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import GPT2LMHeadModel

    from lmedit.models import Lm

TEXTS = (
    "The tower stands in the old city by the river, and the river runs to the sea.",
    "A small boat came down the river in the morning and went home at night.",
    "Nobody in the city knew how old the tower was, nor who had built it.",
)


class _Sizes(dict[str, Any]):
    """Settings of a configuration, as a key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self)))


def _defaults() -> tuple[object, ...]:
    """The settings of torch that decide where and how a new model is made."""
    kinds = torch.get_default_device(), torch.get_default_dtype()
    return *kinds, torch.is_inference_mode_enabled()


def tiny_lm(seed: int = 0, **config: Any) -> Lm:
    """A random GPT-2 of 4 layers x 16 in float64, with a byte-level tokenizer built here."""
    from lmedit.models import Lm

    sizes = {"n_layer": 4, "n_embd": 16, "n_head": 2, "n_positions": 128} | config
    return Lm(
        deepcopy(_gpt2(seed, _Sizes(sizes), _defaults())),
        deepcopy(_tokenizer_to_copy()),
        name="tiny",
    )


@lru_cache(maxsize=64)
def _gpt2(seed: int, sizes: _Sizes, defaults: object) -> Any:
    """The model of `tiny_lm`. A copy of it takes a third of the time to make it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(_tokenizer_to_copy()), bos_token_id=0, eos_token_id=0, **sizes
            )
        )
        torch.manual_seed(seed)
        _draw(model, 0.2)
    return model.double().requires_grad_(False)


def _draw(model: GPT2LMHeadModel, deviation: float) -> None:
    """Draw every matrix. Scale matrices that write to the stream by 1 / sqrt(2 L), as GPT-2 does.

    Releases of transformers draw differently; with this function the test models stay the same.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=deviation)
        if name.endswith("c_proj.weight"):
            scaled = deviation / math.sqrt(2 * model.config.n_layer)
            torch.nn.init.normal_(parameter, std=scaled)


def byte_tokenizer() -> Any:
    """A byte-level BPE tokenizer, trained on a few sentences; the same every time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end)


H, D, LAYERS = 16, 40, 4
_COMMON = {"hidden_size": H, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
_LONG = {"max_position_embeddings": 128}
_LLAMA = _COMMON | _LONG | {"intermediate_size": D, "num_key_value_heads": 1, "head_dim": 8}
_GPT2 = {"n_embd": H, "n_inner": D, "n_layer": LAYERS, "n_head": 2, "n_positions": 128}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "gpt2": ("GPT2Config", _GPT2),
        "gptj": ("GPTJConfig", _GPT2 | {"rotary_dim": 4}),
        "gpt_neo": (
            "GPTNeoConfig",
            _LONG
            | {
                "hidden_size": H,
                "intermediate_size": D,
                "num_layers": LAYERS,
                "num_heads": 2,
                "attention_types": [[["global", "local"], LAYERS // 2]],
                "window_size": 8,
            },
        ),
        "gpt_neox": ("GPTNeoXConfig", _COMMON | _LONG | {"intermediate_size": D}),
        "opt": ("OPTConfig", _COMMON | _LONG | {"word_embed_proj_dim": H, "ffn_dim": D}),
        "llama": ("LlamaConfig", _LLAMA),
        "mistral": ("MistralConfig", _LLAMA | {"sliding_window": 6}),
        "qwen2": ("Qwen2Config", _LLAMA),
        "qwen3": ("Qwen3Config", _LLAMA),
        "gemma": ("GemmaConfig", _LLAMA),
        "gemma2": ("Gemma2Config", _LLAMA | {"sliding_window": 6}),
        "gemma3_text": ("Gemma3TextConfig", _LLAMA | {"sliding_window": 6}),
        "phi3": ("Phi3Config", _LLAMA),
        "phi": ("PhiConfig", _COMMON | _LONG | {"intermediate_size": D}),
        "falcon": ("FalconConfig", _COMMON | {"ffn_hidden_size": D}),
        "bloom": ("BloomConfig", {"hidden_size": H, "n_layer": LAYERS, "n_head": 2}),
    }
)
"""For each family of the core: the name of its configuration class in transformers, and sizes."""


def tiny_family(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> Lm:
    """A random model of *family*: 4 layers x 16, every weight drawn with standard deviation 0.3.

    *changes* are added to its configuration, for example `tie_word_embeddings=False`.
    """
    kind, sizes = FAMILIES[family]
    return tiny_model(kind, {**sizes, **changes}, dtype, seed)


def tiny_model(
    kind: str, sizes: Mapping[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0
) -> Lm:
    """As `tiny_family`, for any configuration class of transformers; *kind* is its name."""
    from lmedit.models import Lm

    model = deepcopy(_random_model(kind, _Sizes(sizes), dtype, seed, _defaults()))
    return Lm(model, _tokenizer_once(), name=f"tiny {kind}")


@lru_cache(maxsize=64)
def _random_model(kind: str, sizes: _Sizes, dtype: torch.dtype, seed: int, defaults: object) -> Any:
    """The model of `tiny_model`, to be copied."""
    import transformers

    specials = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = getattr(transformers, kind)(vocab_size=len(_tokenizer_once()), **{**specials, **sizes})
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(config)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).requires_grad_(False)


@cache
def tiny_shape(family: str, blocks: int) -> Lm:
    """A model of *blocks* blocks, 4 wide, of the family gpt2 or gptj; made once.

    For tests of values that were published for a family and a number of blocks.
    """
    sizes = {"n_layer": blocks, "n_embd": 4, "n_head": 1, "n_positions": 64}
    if family == "gpt2":
        return tiny_lm(**sizes)
    return tiny_model("GPTJConfig", sizes | {"rotary_dim": 4})


_tokenizer_once = cache(byte_tokenizer)
_tokenizer_to_copy = cache(byte_tokenizer)
"""Another one, which no caller gets, so that none changes it."""
