"""Tiny configurations of any model type of transformers: generic rules, then special settings.

A number of the default configuration becomes small if `SMALL` has its name. Lists with one entry
for each block are cut to four entries that show every kind of block.
"""

from __future__ import annotations

from typing import Any

LAYERS, HIDDEN, INNER, HEADS, HEAD = 4, 16, 24, 2, 8
EXPERTS, CHOSEN = 4, 2
POSITIONS = 128
VOCABULARY = 400

_NAMES: tuple[tuple[int, str], ...] = (
    (
        LAYERS,
        """
        num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers
        num_blocks depth
        """,
    ),
    (
        HIDDEN,
        """
        hidden_size d_model n_embd dim embedding_size emb_dim embedding_dim lru_width
        word_embed_proj_dim attention_hidden_size input_embedding_size output_embedding_size
        kv_dim query_pre_attn_scalar pronunciation_embed_dim shape_embed_dim
        embed_dim vision_output_dim projector_input_dim projector_output_dim out_hidden_size
        mm_embed_dim output_proj_dims audio_embed_dim adapter_in_dim adapter_input_size
        adapter_out_dim downsample_hidden_size backbone_hidden_size
        """,
    ),
    (
        INNER,
        """
        intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim moe_intermediate_size
        shared_expert_intermediate_size ffn_hidden_size dff dim_ff intermediate_size_mlp n_inner
        shared_intermediate_size moe_shared_expert_intermediate_size dense_intermediate_size
        shared_experts_intermediate_size expert_ffn_hidden_size feed_forward_size d_inner
        prompt_mid_dim
        """,
    ),
    (
        HEADS,
        """
        num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads
        encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads
        linear_num_key_heads linear_num_heads swa_num_attention_heads swa_num_key_value_heads
        index_n_heads num_key_value_heads num_global_key_value_heads mamba_n_groups o_groups
        linear_num_value_heads
        """,
    ),
    (
        HEAD,
        """
        head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim
        global_head_dim swa_head_dim index_head_dim linear_head_dim kv_channels dim_head d_head
        kv_lora_rank q_lora_rank o_lora_rank attention_head_size mamba_d_state state_size
        ssm_state_size mamba_d_head mamba_head_dim laurel_rank hidden_size_per_layer_input
        router_hidden_size gated_norm_rank adapter_rank mamba_dt_rank time_step_rank chunk_size
        mamba_chunk_size block_size hc_lowrank ple_embed_dim d_rel window_size dim_model_base
        """,
    ),
    (6, "sliding_window sliding_window_size local_attention attention_window_size"),
    (
        2,
        """
        encoder_layers num_encoder_layers num_dense_layers num_kv_shared_layers n_groups
        max_window_layers index_topk_blocks
        """,
    ),
    (28, "image_size crop_size"),
    (4, "qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads hc_mult"),
    (EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (CHOSEN, "num_experts_per_tok moe_topk moe_k num_experts_per_token zero_expert_num"),
    (1, "n_group topk_group num_expert_group first_k_dense_replace moe_layer_start_index"),
    (
        POSITIONS,
        """
        index_topk max_position_embeddings n_positions n_ctx max_seq_len model_max_length
        max_source_positions max_target_positions context_length
        rel_extent mm_posemb_size position_embedding_size
        num_position_embeddings nemo_conv_channels ext_pw_out_channel
        depthwise_separable_out_channel original_max_position_embeddings
        """,
    ),
)
SMALL = {"vocab_size_per_layer_input": VOCABULARY} | {
    name: size for size, names in _NAMES for name in names.split()
}
ALSO_NONE = ("head_dim", "num_key_value_heads")
"""Names that are set although their default is null."""
DEFAULT = object()
"""In the special settings: leave this name at its default."""
_CUT_FROM = {"encoder_layers": LAYERS, "is_encoder_decoder": False, "is_decoder": True}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}
_GEMMA4 = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "head_dim": HEAD}
_MROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        "mrope_interleaved": True,
    }
}
_LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
}
_YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 32,
    }
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "logits_scaling": 8.0,
}
_TIED = {"tie_word_embeddings": True}
RELEASED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE),
    "deepseek_v3": _YARN | {"n_group": 2, "topk_group": 1},
    "falcon": {"new_decoder_architecture": True},
    "llama": _LLAMA3 | _TIED,
    "llama4_text": _LLAMA3,
    "mllama_text_model": _LLAMA3,
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": 64,
        }
    },
    "qwen2": _TIED
    | {"use_sliding_window": True, "sliding_window": 6}
    | {"layer_types": [_FULL, _FULL, _SLIDING, _SLIDING]},
    "qwen3": _TIED,
    "stablelm": {"use_qkv_bias": True},
}
"""Settings that released checkpoints have, and the defaults of transformers have not."""
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart"),
            *("mvp", "pegasus", "plbart", "whisper"),
        ),
        _CUT_FROM,
    ),
    "bamba": _MAMBA | {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 50, "vocab_size": 400},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": INNER, "moe_num_experts": EXPERTS, "moe_top_k": CHOSEN},
    },
    "deepseek_v2": {"num_experts_per_tok": CHOSEN, "first_k_dense_replace": 1},
    "dots1": {
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "dots3_note_text": {
        f"{blocks}{name}": size
        for blocks in ("", "swa_")
        for name, size in {
            **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), HEADS),
            **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim"), HEAD),
            "v_head_dim": HEAD,
            "qk_rope_head_dim": 4,
            "head_dim": HEAD + 4,
        }.items()
    },
    "emu3_vqgan": {
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "codebook_size": 8,
        "hidden_size": 32,
        "attn_resolutions": [],
    },
    "bert-generation": {"is_decoder": True},
    "emu3": {
        "vocabulary_map": {
            "<image>": 300,
            **{f"<|visual token {i:06d}|>": 301 + i for i in range(8)},
        }
    },
    "gemma3n_text": {  # a change at the subject must come before the blocks that share keys
        "num_hidden_layers": 6,
        "layer_types": [*(_SLIDING, _FULL, _FULL, _FULL), *(_SLIDING, _FULL)],
        "num_kv_shared_layers": 2,
        "intermediate_size": INNER,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _GEMMA4 | {"global_head_dim": 16, "final_logit_softcapping": 30.0},
    "gemma4_unified_text": _GEMMA4 | {"global_head_dim": 16, "final_logit_softcapping": 30.0},
    **{
        f"{name}_assistant": {
            "text_config": _GEMMA4
            | {"model_type": f"{name}_text", "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
            | {"num_kv_shared_layers": LAYERS, "hidden_size_per_layer_input": 0}
            | {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": HEADS}
            | {"num_key_value_heads": 1, "global_head_dim": 16, "vocab_size_per_layer_input": 0}
        }
        for name in ("gemma4", "gemma4_unified")
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "hy_v4": {"indexer_types": ["full", "shared"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 4},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1},
    **dict.fromkeys(
        ("qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "glm4v_text"),
        _MROPE,
    ),
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": POSITIONS,
        "indexer_compress_ratio": 4,
    },
    "roc_bert": {"pronunciation_vocab_size": 40, "shape_vocab_size": 40},
    "prophetnet": {"num_encoder_layers": LAYERS, "is_decoder": True},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local"] * LAYERS},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    # Its keys' width is a multiple of 64, and half of the hidden size.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "chunk_size": 16},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": DEFAULT,
        "attention_head_dim": DEFAULT,
    },
}

for _kind, _settings in RELEASED.items():
    SPECIAL[_kind] = SPECIAL.get(_kind, {}) | _settings


def tiny_config(kind: str) -> Any:
    """The tiny configuration of the model type *kind*."""
    from transformers import CONFIG_MAPPING

    return shrunk(CONFIG_MAPPING[kind], kind)


def shrunk(cls: Any, kind: str = "") -> Any:
    """A small configuration of the class *cls*; *kind* finds its special settings."""
    special = SPECIAL.get(kind or cls.model_type, {})
    values = settings(cls, special) | special
    return cls(**{name: value for name, value in values.items() if value is not DEFAULT})


def settings(cls: Any, special: dict[str, Any]) -> dict[str, Any]:
    """The settings that the general rules give for the class *cls*."""
    names = list(cls.__dataclass_fields__)
    known = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    found = {name: value for name, value in known.items() if name in names}
    try:
        plain = cls()
    except Exception:  # noqa: BLE001  (some defaults do not fit together)
        plain = None
    found |= {
        name: small for name in names if (small := _small(name, _of(plain, name))) is not None
    }
    heads, groups = (_of(plain, f"num_{n}_heads") for n in ("attention", "key_value"))
    if "num_key_value_heads" in found and isinstance(groups, int) and 0 < groups < (heads or 0):
        found["num_key_value_heads"] = 1
    for name in cls.sub_configs:
        if name not in special:
            found[name] = _inner(cls, name, _of(plain, name))
    return found


def _of(plain: Any, name: str) -> Any:
    """The default of *name*; None where blocks differ, or where the class has none."""
    try:
        return getattr(plain, name, None)
    except Exception:  # noqa: BLE001  (a setting of single blocks, with an error class of its own)
        return None


def _small(name: str, value: Any) -> Any:
    """The small value of a setting whose default is *value*; None leaves it alone."""
    if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
        return 0
    if name.endswith(("layer_types", "block_types", "layers_block_type")) or name in CUT:
        return _cut(value) if isinstance(value, list | tuple) and value else None
    small = SMALL.get(name)
    if small is None or isinstance(value, bool) or not isinstance(value, int | None):
        return None
    return small if (value or 0) > small or (value is None and name in ALSO_NONE) else None


CUT = ("indexer_types", "no_rope_layers", "layer_rope_theta", "num_attention_heads_per_layer")


def _cut(values: Any) -> list[Any]:
    """Four entries that contain every kind of entry: the last four if they do."""
    last = list(values[-LAYERS:])
    kinds = list(dict.fromkeys(values))
    if set(last) == set(kinds) and len(last) == LAYERS:
        return last
    return (kinds * LAYERS)[:LAYERS]


def _inner(cls: Any, name: str, default: Any) -> Any:
    """The tiny configuration inside another one, as a dictionary."""
    inner = type(default) if default is not None else cls.sub_configs[name]
    if not hasattr(inner, "__dataclass_fields__"):
        return DEFAULT
    return (
        {"model_type": inner.model_type} | settings(inner, {}) | SPECIAL.get(inner.model_type, {})
    )
