"""Running from a layer and a position on gives what running everything gives, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from lmedit.models import Lm
from lmedit.replay import keep
from lmedit.testing import byte_tokenizer
from lmedit.trace import changed

TOKENIZER = byte_tokenizer()
IDS: dict[str, Any] = {"vocab_size": len(TOKENIZER), "bos_token_id": 0, "eos_token_id": 0,
                       "pad_token_id": None}  # fmt: skip
ROTARY: dict[str, Any] = {
    "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, **IDS,
}  # fmt: skip
PLAIN: dict[str, Any] = {k: v for k, v in ROTARY.items() if k != "num_key_value_heads"}
LOCAL = [[["global", "local"], 2]]
CONFIGS = {
    "gpt2": GPT2Config(n_layer=4, n_embd=32, n_head=4, n_positions=128, **IDS),
    "gptj": GPTJConfig(n_layer=4, n_embd=32, n_head=4, n_positions=128, rotary_dim=4, **IDS),
    "gpt_neo": GPTNeoConfig(
        num_layers=4, hidden_size=32, num_heads=4, max_position_embeddings=128, window_size=8,
        intermediate_size=64, attention_types=LOCAL, **IDS,
    ),
    "gpt_neox": GPTNeoXConfig(**PLAIN),
    "opt": OPTConfig(
        num_hidden_layers=4, hidden_size=32, ffn_dim=64, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, **{**IDS, "pad_token_id": 1},
    ),
    "llama": LlamaConfig(**ROTARY),
    "mistral": MistralConfig(sliding_window=6, **ROTARY),
    "qwen2": Qwen2Config(**ROTARY),
    "qwen3": Qwen3Config(head_dim=8, **ROTARY),
    "gemma2": Gemma2Config(head_dim=8, sliding_window=6, **ROTARY),
    "gemma3": Gemma3TextConfig(head_dim=8, sliding_window=6, **ROTARY),
    "phi3": Phi3Config(**ROTARY),
    "phi": PhiConfig(**ROTARY),
    "bloom": BloomConfig(n_layer=4, hidden_size=32, n_head=4, **IDS),
    "falcon": FalconConfig(
        num_hidden_layers=4, hidden_size=32, num_attention_heads=4, alibi=False, **IDS
    ),
}  # fmt: skip
TEXTS = (
    "The tower stands in the old city by",
    "A small boat",
    "Nobody in the city knew how old the tower was, nor who had built it; The tower",
)
STARTS = (4, 0, 7)


def tiny(family: str) -> Lm:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family])
    return Lm(model.double().requires_grad_(False), TOKENIZER)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", CONFIGS)
def test_replay_equals_the_whole_run(family: str, layer: int) -> None:
    lm = tiny(family)
    # Gemma 2 takes the softmax in float32, whatever the model's type.
    tolerance = 1e-6 if family == "gemma2" else 1e-10
    rows = [lm.encode(text) for text in TEXTS]
    whole = lm.logits(lm.batch(rows))
    kept = keep(lm, rows, STARTS, layer)
    for _ in range(2):
        part = kept.logits(range(kept.shape[1]))
        for i, (row, start) in enumerate(zip(rows, STARTS, strict=True)):
            torch.testing.assert_close(
                part[i, : len(row) - start], whole[i, start : len(row)], atol=tolerance, rtol=0
            )


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma3", "falcon"])
def test_a_change_at_the_layer_and_its_gradient_are_those_of_the_whole_run(family: str) -> None:
    lm = tiny(family)
    row, start, layer = lm.encode(TEXTS[2]), 7, 2
    module = lm.mlp_out_module(layer)

    def gradient(run: Any, place: int) -> torch.Tensor:
        delta = torch.full((32,), 0.1, dtype=torch.float64, requires_grad=True)

        def add(_: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            at = torch.zeros(out.shape[1], 1, dtype=torch.float64)
            at[place] = 1
            return out + at * delta

        with changed(module, add):
            logits = run()
        (found,) = torch.autograd.grad(logits[0, -1].square().sum(), [delta])
        return found

    kept = keep(lm, [row], [start], layer)
    last = len(row) - start - 1
    torch.testing.assert_close(
        gradient(lambda: kept.logits([last]), 0),
        gradient(lambda: lm.logits(lm.batch([row])), start),
        atol=1e-10,
        rtol=1e-10,
    )


def test_replay_leaves_no_trace_and_reads_its_cache_only() -> None:
    lm = tiny("gpt2")
    rows = [lm.encode(text) for text in TEXTS]
    before = lm.logits(lm.batch(rows))
    kept = keep(lm, rows, STARTS, 2)
    first = kept.logits([0])
    assert torch.equal(first, kept.logits([0]))
    assert torch.equal(before, lm.logits(lm.batch(rows)))
    assert not any("forward" in vars(module) for module in lm.model.modules())
