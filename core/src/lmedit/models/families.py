"""Where each family has its parts. Only this module asks the config and the modules.

A table by `config.model_type` holds the known families. Any other decoder is searched by structure.
Its blocks are the only list with as many entries as the config has layers. In a block, the MLP
output is the only matrix outside attention that leads back to the hidden size. The final norm is
the last norm after the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lmedit.errors import UnknownArchitectureError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lmedit.types import Site


@dataclass(frozen=True)
class Family:
    """Module paths: the list of blocks, the MLP output matrix of a block, the final norm."""

    blocks: str
    mlp_out: str
    norm: str


_LLAMA = Family("model.layers", "mlp.down_proj", "model.norm")
KNOWN: dict[str, Family] = {
    "gpt2": Family("transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "gptj": Family("transformer.h", "mlp.fc_out", "transformer.ln_f"),
    "gpt_neo": Family("transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "gpt_neox": Family("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "opt": Family("model.decoder.layers", "fc2", "model.decoder.final_layer_norm"),
    "phi": Family("model.layers", "mlp.fc2", "model.final_layernorm"),
    "bloom": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "falcon": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"), _LLAMA
    ),
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of *model*; raises `UnknownArchitectureError`, which names the missing part."""
    _check_decoder(model)
    known = KNOWN.get(model.config.get_text_config().model_type)
    if known is not None and known.blocks in dict(model.named_modules()):
        return known
    return search_family(model)


def _check_decoder(model: PreTrainedModel) -> None:
    """Refuse models that read the tokens after a position: no position is the subject's last."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    config = model.config
    two_way = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder
    if two_way or config.is_encoder_decoder:
        raise UnknownArchitectureError(
            f"{_kind(model)} is not a decoder that reads from left to right; choose a decoder"
        )


def search_family(model: PreTrainedModel) -> Family:
    """The family, found by structure alone (see the module docstring)."""
    blocks = _find_blocks(model)
    parent = model.get_submodule(blocks.rpartition(".")[0])
    block = model.get_submodule(blocks)
    if not isinstance(block, nn.ModuleList):
        raise TypeError(blocks)
    mlp_out = _find_mlp_out(model, block[0], f"{blocks}.0")
    norm = _find_norm(model, parent, blocks.rpartition(".")[0])
    return Family(blocks, mlp_out, norm)


def _find_blocks(model: PreTrainedModel) -> str:
    layers = model.config.get_text_config().num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    }
    outermost = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    fitting = outermost
    if len(outermost) > 1:  # for example a vision tower of the same depth
        fitting = [name for name in outermost if _leads_back(model, lists[name][0])]
    if len(fitting) != 1:
        raise UnknownArchitectureError(
            f"{_kind(model)}: looked for one ModuleList of {layers} blocks "
            f"(config.num_hidden_layers), found {fitting or 'none'}; "
            "add the family to lmedit.models.families"
        )
    return fitting[0]


def _leads_back(model: PreTrainedModel, block: nn.Module) -> dict[str, nn.Module]:
    """The matrices of *block* outside attention whose output has the hidden size."""
    hidden = model.config.get_text_config().hidden_size
    attention = tuple(
        f"{name}."
        for name, module in block.named_modules()
        if name and "attention" in type(module).__name__.lower()
    )
    return {
        name: module
        for name, module in block.named_modules()
        if is_matrix(module)
        and not name.startswith(attention or ("\0",))
        and matrix_shape(module)[0] == hidden
    }


def _find_mlp_out(model: PreTrainedModel, block: nn.Module, where: str) -> str:
    found = _leads_back(model, block)
    hidden = model.config.get_text_config().hidden_size
    wide = [name for name, module in found.items() if matrix_shape(module)[1] != hidden]
    names = wide or list(found)
    if len(names) != 1:
        raise UnknownArchitectureError(
            f"{_kind(model)}: looked in {where} for one MLP output matrix (outside attention, "
            f"to the hidden size {hidden}), found {names or 'none'}; "
            "add the family to lmedit.models.families"
        )
    return names[0]


def _find_norm(model: PreTrainedModel, parent: nn.Module, where: str) -> str:
    norms = [
        name for name, module in parent.named_children() if "norm" in type(module).__name__.lower()
    ]
    if not norms:
        raise UnknownArchitectureError(
            f"{_kind(model)}: looked for a final norm among the children of {where or 'the model'}"
            f" ({', '.join(name for name, _ in parent.named_children())}), found none; "
            "add the family to lmedit.models.families"
        )
    return f"{where}.{norms[-1]}" if where else norms[-1]


def mlp_inputs(block: nn.Module, mlp_out: str) -> list[str]:
    """Names of the matrices next to *mlp_out* that lead from the hidden size to the keys' size.

    If gate and value are one matrix, its output has twice that size, and the gate comes first.
    """
    hidden, inner = matrix_shape(block.get_submodule(mlp_out))
    parent = block.get_submodule(mlp_out.rpartition(".")[0])
    return [
        name
        for name, module in parent.named_children()
        if is_matrix(module) and matrix_shape(module) in {(inner, hidden), (2 * inner, hidden)}
    ]


def pre_activation(block: nn.Module, mlp_out: str) -> str:
    """Path in *block* of the matrix whose output goes into the MLP's activation function.

    If two matrices lead to the keys' size, it is the one whose name contains "gate".
    """
    parent, _, _ = mlp_out.rpartition(".")
    found = mlp_inputs(block, mlp_out)
    names = [name for name in found if "gate" in name] if len(found) > 1 else found
    if len(names) != 1:
        raise UnknownArchitectureError(
            f"looked next to {mlp_out} for one matrix before the activation function, found "
            f"{found or 'none'}; use the MLP's keys instead"
        )
    return f"{parent}.{names[0]}" if parent else names[0]


ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""Names of the matrix with which attention writes into the stream."""


def attention_out(block: nn.Module) -> str:
    """Path in *block* of the attention's output matrix: by name, in the attention module."""
    found = [
        name
        for name, module in block.named_modules()
        if is_matrix(module)
        and name.rpartition(".")[2] in ATTENTION_OUT
        and any("attention" in type(parent).__name__.lower() for parent in _above(block, name))
    ]
    if len(found) != 1:
        raise UnknownArchitectureError(
            f"looked in a block for one attention output matrix ({', '.join(ATTENTION_OUT)}), "
            f"found {found or 'none'}; add its name to lmedit.models.families"
        )
    return found[0]


def _above(block: nn.Module, name: str) -> list[nn.Module]:
    """The modules inside *block* that contain the module *name*."""
    parts = name.split(".")[:-1]
    return [block.get_submodule(".".join(parts[:i])) for i in range(1, len(parts) + 1)]


def is_matrix(module: nn.Module) -> bool:
    """Whether *module* is one dense matrix: `Linear`, or GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether *module* stores its weight (d_in, d_out); the type decides, never the shape."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a matrix module."""
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def _kind(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} (model_type {model.config.model_type!r})"


def as_matrix(parameter: Tensor, site: Site) -> Tensor:
    """A view (d_out, d_in) of *parameter*; a bias is one column."""
    if parameter.dim() == 1:
        return parameter.unsqueeze(1)
    return parameter.T if site.transposed else parameter
