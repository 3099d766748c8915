"""Tiny GGUF files, and wheels that bring them, made on the spot for tests."""

from __future__ import annotations

import hashlib
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from lmedit.tiny import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

H, D, LAYERS, HEADS = 32, 64, 2, 2
MEMBER = "toy_model/toy.Q8_0.gguf"


def matrices(seed: int = 0, vocabulary: int = 400) -> dict[str, np.ndarray]:
    """The tensors of a random llama of 2 blocks x 32, by their names in a GGUF file."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return draw.normal(0, 0.3, (rows, columns)).astype(np.float32)

    found = {"token_embd.weight": matrix(vocabulary, H), "output_norm.weight": np.ones(H, "f4")}
    for block in range(LAYERS):
        shapes = {
            "attn_q": (H, H),
            "attn_k": (H, H),
            "attn_v": (H, H),
            "attn_output": (H, H),
            "ffn_gate": (D, H),
            "ffn_up": (D, H),
            "ffn_down": (H, D),
        }
        for name, shape in shapes.items():
            found[f"blk.{block}.{name}.weight"] = matrix(*shape)
        for name in ("attn_norm", "ffn_norm"):
            found[f"blk.{block}.{name}.weight"] = np.ones(H, "f4")
    return found


def write_gguf(path: Path, kind: str = "F32", seed: int = 0, architecture: str = "llama") -> Path:
    """Write a tiny model with a byte-level tokenizer; its matrices are stored as *kind*."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    _add_keys(writer)
    tokenizer = byte_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    _add_tokenizer(writer, tokenizer, [token for token, _ in vocabulary])
    number = GGMLQuantizationType[kind]
    for name, values in matrices(seed, len(vocabulary)).items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gpt2(path: Path, model: Any, blocks: int) -> Path:
    """Write a GPT-2 of transformers, with the tokenizer of `byte_tokenizer`, as F32."""
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    writer = GGUFWriter(path, "gpt2")
    config = model.config
    writer.add_block_count(blocks)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    tokenizer = byte_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    _add_tokenizer(writer, tokenizer, [token for token, _ in vocabulary])
    names = get_tensor_name_map(MODEL_ARCH.GPT2, blocks)
    for name, values in model.named_parameters():
        module, _, end = name.rpartition(".")
        array = values.detach().float().numpy()
        turned = any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        array = np.ascontiguousarray(array.T if turned else array)
        writer.add_tensor(f"{names.get_name(module)}.{end}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_keys(writer: Any) -> None:
    writer.add_name("toy")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(H)
    writer.add_feed_forward_length(D)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(H // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_tokenizer(writer: Any, tokenizer: Any, tokens: list[str]) -> None:
    import json

    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def write_wheel(path: Path, gguf: Path, member: str = MEMBER) -> Path:
    """A wheel ``toy-model`` 1.0 that holds the file *gguf* as *member*, and a module that fails."""
    metadata = (
        "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("toy_model/__init__.py", "raise RuntimeError('code of the wheel ran')\n")
        wheel.write(gguf, member)
        wheel.writestr("toy_model-1.0.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("toy_model-1.0.dist-info/WHEEL", tags)
        wheel.writestr("toy_model-1.0.dist-info/RECORD", "")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of the file at *path*."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
