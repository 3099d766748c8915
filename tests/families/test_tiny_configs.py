"""Tiny configurations have what released checkpoints have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_configs import RELEASED, tiny_config
from transformers import AutoModelForCausalLM


def text(kind: str) -> Any:
    return tiny_config(kind).get_text_config()


@pytest.mark.parametrize("kind", ["gemma2", "gemma3n_text", "gemma4_text", "vaultgemma"])
def test_logits_have_a_soft_cap(kind: str) -> None:
    assert text(kind).final_logit_softcapping


@pytest.mark.parametrize(
    "kind", ["cohere2", "exaone4", "gemma2", "gemma3_text", "gemma3n_text", "gpt_oss", "qwen2"]
)
def test_some_layers_have_a_window_that_is_shorter_than_the_texts(kind: str) -> None:
    config = text(kind)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.sliding_window < 8


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [
        ("deepseek_v3", "yarn"),
        ("gpt_oss", "yarn"),
        ("llama", "llama3"),
        ("llama4_text", "llama3"),
        ("phi3", "longrope"),
    ],
)
def test_rotations_are_scaled(kind: str, scaling: str) -> None:
    assert text(kind).rope_parameters["rope_type"] == scaling


@pytest.mark.parametrize("kind", ["gemma", "gemma4_text", "lfm2", "llama", "mamba", "qwen2"])
def test_heads_are_tied(kind: str) -> None:
    assert tiny_config(kind).tie_word_embeddings
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(kind))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["glm4", "gpt_oss", "phi3", "qwen2", "stablelm", "starcoder2"])
def test_gates_are_fused_or_biases_are_there(kind: str) -> None:
    with torch.device("meta"):
        names = dict(AutoModelForCausalLM.from_config(tiny_config(kind)).named_parameters())
    assert any("gate_up_proj" in n or n.endswith("q_proj.bias") for n in names)


@pytest.mark.parametrize("kind", RELEASED)
def test_settings_of_released_checkpoints_are_taken(kind: str) -> None:
    from transformers import CONFIG_MAPPING

    assert kind in CONFIG_MAPPING
    config = text(kind)
    for name, value in RELEASED[kind].items():
        found = getattr(config, name)
        wanted = value.items() if isinstance(value, dict) else [(None, value)]
        for key, each in wanted:
            assert (found if key is None else found[key]) == each, (name, key)
