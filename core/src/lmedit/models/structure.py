"""Find parts by structure: matrices, their shapes, and the MLP output matrix of one block."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from lmedit.errors import UnknownArchitectureError
from lmedit.models.packings import is_packed_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

MIXERS = re.compile(
    r"attention|mla$|mixer|mamba\w*layer|deltanet|shortconv|recurrentblock|rglru|mlstm|indexer|norm",
    re.IGNORECASE,
)
"""Classes of modules that mix tokens, and norms. No MLP is inside them."""
ATTENTIONS = re.compile("attention|mla$", re.IGNORECASE)
OTHER_MIXERS = re.compile(
    r"mixer|mamba|deltanet|shortconv|recurrentblock|rglru|mlstm|retention", re.IGNORECASE
)
"""Classes of modules that mix tokens in place of attention."""
STATE_SPACE = re.compile(r"mixer|mamba", re.IGNORECASE)
"""Classes of modules that mix tokens by a state."""
STATE_OUT = "out_proj"
"""The matrix with which such a module writes into the stream."""
OTHERS = re.compile(r"vision|visual|image|img|audio|speech|tower", re.IGNORECASE)
"""Names of the parts of a multimodal model that read no text."""
IMAGE_BLOCKS = re.compile(r"CrossAttention\w*Layer")
"""Classes of blocks that only attend to images (Llama 3.2 Vision); a pass on text skips them."""
DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_layers")
"""Names in a config of the number of blocks."""


def module_at(model: nn.Module, path: str) -> nn.Module:
    """As `get_submodule`, which takes ten times as long; an edit looks up thousands of modules."""
    module: nn.Module | None = model
    for name in path.split("."):
        module = None if module is None else module._modules.get(name)
    return model.get_submodule(path) if module is None else module


def is_transposed(module: nn.Module) -> bool:
    """Whether *module* stores its weight (d_in, d_out); the type decides, never the shape."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) or (is_experts(module) and bool(module.is_transposed))


def is_matrix(module: nn.Module) -> bool:
    """Whether *module* is one dense matrix: `Linear`, GPT-2's `Conv1D`, or a packed one."""
    if isinstance(module, nn.Linear) or is_packed_matrix(module):
        return True
    return is_transposed(module) and not is_experts(module)


def is_experts(module: nn.Module) -> bool:
    """Whether *module* has one output matrix for each expert, in transformers' common layout.

    That is the layout of `transformers.integrations.moe`: a parameter ``down_proj`` of three
    dimensions, and attributes that describe the rest.
    """
    matrices = getattr(module, "down_proj", None)
    return (
        isinstance(matrices, nn.Parameter)
        and matrices.dim() == 3
        and all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))
        and not getattr(module, "has_post_expert_norm", False)
    )


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a matrix module."""
    if isinstance(module, nn.Linear) or is_packed_matrix(module):  # packed in another shape
        sizes: Any = module
        return sizes.out_features, sizes.in_features
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def kind(model: Any) -> str:
    """The class and the model type, for errors."""
    return f"{type(model).__name__} (model_type {model.config.model_type!r})"


def outside(block: nn.Module, classes: re.Pattern[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of *block* that lie in no module of one of the *classes*."""
    inside: tuple[str, ...] = ()
    for name, module in block.named_modules():
        if not name or name.startswith(inside or ("\0",)):
            continue
        if classes.search(type(module).__name__):
            inside = (*inside, f"{name}.")
        else:
            yield name, module


def mlp_out_of(block: nn.Module, hidden: int) -> list[str]:
    """Paths in *block* that can be its MLP output matrix: none, one, or several.

    It is the widest matrix outside attention that leads to the *hidden* size: the dense MLP's, or
    the shared expert's. Without one, it is the experts' parameter of three dimensions.
    """
    back = {
        name: matrix_shape(module)[1]
        for name, module in outside(block, MIXERS)
        if is_matrix(module) and matrix_shape(module)[0] == hidden
    }
    wide = {name: size for name, size in back.items() if size != hidden}
    square = {name: size for name, size in back.items() if mlp_inputs(block, name)}
    dense = wide or square
    if dense:
        return [name for name, size in dense.items() if size == max(dense.values())]
    return [
        f"{name}.down_proj"
        for name, module in outside(block, MIXERS)
        if is_experts(module) and _writes(module, hidden)
    ]


def _writes(experts: Any, hidden: int) -> bool:
    """Whether the *experts* lead to the *hidden* size, and not to a smaller one."""
    return bool(experts.down_proj.shape[2 if experts.is_transposed else 1] == hidden)


def state_out_of(block: nn.Module, hidden: int) -> list[str]:
    """Paths in *block* of the matrix with which a state-space module writes into the stream."""
    return [
        name
        for name, module in block.named_modules()
        if is_matrix(module)
        and name.rpartition(".")[2] == STATE_OUT
        and matrix_shape(module)[0] == hidden
        and any(STATE_SPACE.search(type(parent).__name__) for parent in above(block, name))
    ]


def mlp_inputs(block: nn.Module, mlp_out: str) -> list[str]:
    """Names of the matrices next to *mlp_out* that lead from the hidden size to the keys' size.

    If gate and value are one matrix, its output has twice that size, and the gate comes first.
    """
    hidden, inner = matrix_shape(block.get_submodule(mlp_out))
    beside = block.get_submodule(mlp_out.rpartition(".")[0])
    return [
        name
        for name, module in beside.named_children()
        if is_matrix(module)
        and matrix_shape(module) in {(inner, hidden), (2 * inner, hidden)}
        and name != mlp_out.rpartition(".")[2]
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


ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "linear_out")
"""Names of the matrix with which attention writes into the stream."""


def attention_out(block: nn.Module, mlp_out: str | None = None) -> str:
    """Path in *block* of the attention's output matrix: by name, in the attention module.

    Without attention, it is that of the module that mixes tokens in its place. *mlp_out* is the
    matrix that counts as the MLP's.
    """
    found: list[str] = []
    for classes in (ATTENTIONS, OTHER_MIXERS):
        found = found or [
            name
            for name, module in block.named_modules()
            if is_matrix(module)
            and name.rpartition(".")[2] in ATTENTION_OUT
            and name != mlp_out
            and any(classes.search(type(parent).__name__) for parent in above(block, name))
        ]
    if len(found) != 1:
        raise UnknownArchitectureError(
            f"looked in a block for one attention output matrix ({', '.join(ATTENTION_OUT)}), "
            f"found {found or 'none'}; causal tracing cannot run here"
        )
    return found[0]


def above(block: nn.Module, name: str) -> list[nn.Module]:
    """The modules inside *block* that contain the module *name*."""
    parts = name.split(".")[:-1]
    return [block.get_submodule(".".join(parts[:i])) for i in range(1, len(parts) + 1)]
