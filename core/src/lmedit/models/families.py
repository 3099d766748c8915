"""Where each family has its parts. Only this module and `structure` ask the config and the modules.

A table by `config.model_type` holds the known families. Any other decoder is searched by
structure. Its blocks are the only list with as many entries as the config has layers. Every block
is searched for its MLP output matrix (`structure.mlp_out_of`). If no block has one, it is
the matrix with which a state-space module writes into the stream. A user can name the parts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lmedit.errors import UnknownArchitectureError
from lmedit.models.structure import (
    DEPTHS,
    IMAGE_BLOCKS,
    MIXERS,
    OTHERS,
    attention_out,
    is_experts,
    is_matrix,
    is_transposed,
    kind,
    matrix_shape,
    mlp_inputs,
    mlp_out_of,
    outside,
    pre_activation,
    state_out_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lmedit.types import Site

__all__ = [
    "KNOWN",
    "Family",
    "as_matrix",
    "attention_out",
    "family_of",
    "is_matrix",
    "is_transposed",
    "matrix_shape",
    "mlp_inputs",
    "pre_activation",
    "search_family",
]


@dataclass(frozen=True)
class Family:
    """Module paths: the list of blocks, the MLP output matrix of a block, the final norm."""

    blocks: str
    mlp_out: str
    norm: str | None
    others: tuple[tuple[int, str | None], ...] = ()
    """Blocks that have the MLP output matrix at another path, or have none (None)."""
    left_out: tuple[int, ...] = ()
    """Blocks that a pass on text does not run; they have no matrix to edit."""

    def out(self, layer: int) -> str | None:
        """The path in block *layer* of its MLP output matrix; None if it has none."""
        return dict(self.others).get(layer, self.mlp_out)


PLACE = "{}"
"""In a named path: the place of the block's number."""
REMEDY = "name it: -o mlp_out 'PATH.OF.BLOCKS.{}.PATH.IN.BLOCK'"

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


def family_of(model: PreTrainedModel, named: Mapping[str, str] | None = None) -> Family:
    """The family of *model*; *named* are the parts that the user named (``-o mlp_out``).

    Raises `UnknownArchitectureError`, which names the missing part and the candidates.
    """
    _check_decoder(model)
    known = KNOWN.get(model.config.get_text_config().model_type)
    if not named and known is not None and known.blocks in dict(model.named_modules()):
        return known
    return search_family(model, named)


def _check_decoder(model: PreTrainedModel) -> None:
    """Refuse models that read the tokens after a position: no position is the subject's last."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    config = model.config
    two_way = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not (
        getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    )
    if two_way or config.is_encoder_decoder:
        why = (
            "it has an encoder, which reads the whole text"
            if config.is_encoder_decoder
            else "config.is_decoder is not set, so it reads later tokens too"
        )
        raise UnknownArchitectureError(
            f"{kind(model)} is not a decoder that reads from left to right ({why}); choose a "
            "decoder"
        )


def search_family(model: PreTrainedModel, named: Mapping[str, str] | None = None) -> Family:
    """The family, found by structure alone (see the module docstring); *named* parts are taken."""
    named = dict(named or {})
    if PLACE in named.get("mlp_out", ""):
        above, _, inside = named["mlp_out"].partition(f".{PLACE}.")
        named |= {"blocks": above, "mlp_out": inside}
    blocks = _named_blocks(model, named["blocks"]) if "blocks" in named else _find_blocks(model)
    members = list(model.get_submodule(blocks).children())
    if "mlp_out" in named:
        outs = [_has(block, named["mlp_out"]) for block in members]
    else:
        outs = _find_outs(model, members, blocks)
    left_out = [i for i, each in enumerate(members) if IMAGE_BLOCKS.search(type(each).__name__)]
    outs = [None if i in left_out else out for i, out in enumerate(outs)]
    if not any(outs):
        raise _no_matrix(model, members, blocks, named.get("mlp_out"))
    most = Counter(out for out in outs if out).most_common(1)[0][0]
    others = tuple((i, out) for i, out in enumerate(outs) if out != most)
    norm = _named_norm(model, named["norm"]) if "norm" in named else None
    norm = norm or _find_norm(model, blocks.rpartition(".")[0])
    return Family(blocks, most, norm, others, tuple(left_out))


def _named_norm(model: PreTrainedModel, path: str) -> str:
    modules = dict(model.named_modules())
    if path not in modules:
        norms = [n for n, m in modules.items() if "norm" in type(m).__name__.lower()]
        raise UnknownArchitectureError(
            f"{kind(model)} has no module {path!r}; its norms are {', '.join(norms) or 'none'}"
        )
    return path


def _named_blocks(model: PreTrainedModel, path: str) -> str:
    module = dict(model.named_modules()).get(path)
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        raise UnknownArchitectureError(
            f"{kind(model)} has no list of blocks {path!r}; its lists are {', '.join(lists)}"
        )
    return path


def _has(block: nn.Module, path: str) -> str | None:
    """*path*, if *block* has one matrix or the experts' matrices there."""
    modules = dict(block.named_modules())
    found = modules.get(path)
    experts = modules.get(path.rpartition(".")[0])
    fits = (found is not None and is_matrix(found)) or (
        experts is not None and is_experts(experts) and path.endswith(".down_proj")
    )
    return path if fits else None


def _depths(model: PreTrainedModel) -> set[int]:
    """The numbers of blocks that the config names."""
    config = model.config.get_text_config()
    found = {getattr(config, name, None) for name in DEPTHS}
    return {depth for depth in found if isinstance(depth, int)}


def _find_blocks(model: PreTrainedModel) -> str:
    depths = _depths(model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in depths
    }
    outermost = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    fitting = outermost
    if len(outermost) > 1:  # for example a vision tower of the same depth
        text = [name for name in outermost if not OTHERS.search(name)]
        fitting = [
            name
            for name in text
            if len({out for block in lists[name] for out in mlp_out_of(block, _width(model))}) == 1
        ] or text
    if len(fitting) != 1:
        counts = " or ".join(map(str, sorted(depths))) or "an unknown number of"
        raise UnknownArchitectureError(
            f"{kind(model)}: looked for one ModuleList of {counts} blocks "
            f"(config.num_hidden_layers), found {fitting or 'none'}; {_named_lists(model)}"
        )
    return fitting[0]


def _named_lists(model: PreTrainedModel) -> str:
    """The lists of blocks with an MLP output matrix, and the line that names one."""
    found = {}
    for name, module in model.named_modules():
        listed = isinstance(module, nn.ModuleList) and len(module) and not OTHERS.search(name)
        for out in mlp_out_of(module[0], _width(model))[:1] if listed else ():
            found[f"{name}.{PLACE}.{out}"] = len(module)
    if not found:
        lists = [
            f"{name} ({len(module)})"
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
        ]
        return f"its lists are {', '.join(lists) or 'none'}; {REMEDY}"
    each = ", ".join(f"{path} ({count} blocks)" for path, count in found.items())
    return f"it has {each}; name one: -o mlp_out '{max(found, key=lambda path: found[path])}'"


def _width(model: PreTrainedModel) -> int:
    return int(getattr(model.config.get_text_config(), "hidden_size", 0))


def _find_outs(
    model: PreTrainedModel, members: Sequence[nn.Module], blocks: str
) -> list[str | None]:
    """The MLP output matrix of each block; if no block has its own, the state-space matrix."""
    outs = _each(model, members, blocks, mlp_out_of)
    shared = _find_shared(members, outs)
    outs = [None if i in shared else out for i, out in enumerate(outs)]
    return outs if any(outs) else _each(model, members, blocks, state_out_of)


def _each(
    model: PreTrainedModel,
    members: Sequence[nn.Module],
    blocks: str,
    find: Callable[[nn.Module, int], list[str]],
) -> list[str | None]:
    outs: list[str | None] = []
    for i, block in enumerate(members):
        found = find(block, _width(model))
        if len(found) > 1:
            raise UnknownArchitectureError(
                f"{kind(model)}: looked in {blocks}.{i} for one MLP output matrix (outside "
                f"attention, to the hidden size {_width(model)}), found {found}; name one: "
                f"-o mlp_out '{blocks}.{PLACE}.{found[-1]}'"
            )
        outs.append(found[0] if found else None)
    return outs


def _find_shared(members: Sequence[nn.Module], outs: Sequence[str | None]) -> set[int]:
    """The blocks whose matrix other blocks use too: an edit would act in all of them."""
    matrices: dict[int, list[int]] = {}
    for i, (block, out) in enumerate(zip(members, outs, strict=True)):
        if out is not None:
            matrices.setdefault(id(parameter_at(block, out)), []).append(i)
    return {i for users in matrices.values() if len(users) > 1 for i in users}


def parameter_at(block: nn.Module, out: str) -> object:
    """The parameter of the matrix at the path *out*: of a module, or of all experts.

    It is the module itself if it packs its matrix into other tensors.
    """
    parent, _, last = out.rpartition(".")
    found = getattr(block.get_submodule(parent), last)
    return found if isinstance(found, nn.Parameter) else getattr(found, "weight", found)


def _no_matrix(
    model: PreTrainedModel, members: Sequence[nn.Module], blocks: str, asked: str | None
) -> UnknownArchitectureError:
    hidden = _width(model)
    near = [
        name
        for name, module in outside(members[0], MIXERS)
        if is_matrix(module) and matrix_shape(module)[0] == hidden
    ]
    flat = [
        f"{name}.{of} {tuple(parameter.shape)}"
        for name, module in outside(members[0], MIXERS)
        for of, parameter in module.named_parameters(recurse=False)
        if ("expert" in name.lower() or "expert" in type(module).__name__.lower())
        and hidden in parameter.shape
        and parameter.dim() in {2, 3}
    ]
    if asked is not None:
        what = f"no block of {blocks} has one matrix {asked!r}"
    elif flat:
        what = f"its experts keep their matrices in another layout than others ({flat[-1]})"
    else:
        what = (
            f"looked in {blocks}.0 for one MLP output matrix (outside attention, to the hidden "
            f"size {hidden}), found none"
        )
    remedy = f"name one: -o mlp_out '{blocks}.{PLACE}.{near[0]}'" if near else REMEDY
    if flat and not near and asked is None:
        remedy = "lmedit does not know this layout, choose another model"
    listed = f"; matrices to that size: {', '.join(near)}" if near else ""
    return UnknownArchitectureError(f"{kind(model)}: {what}{listed}; {remedy}")


def _find_norm(model: PreTrainedModel, where: str) -> str | None:
    """The last norm next to the list of blocks; None if there is none. It is optional."""
    parent: Any = model.get_submodule(where)
    norms = [
        name for name, module in parent.named_children() if "norm" in type(module).__name__.lower()
    ]
    if not norms:
        return None
    return f"{where}.{norms[-1]}" if where else norms[-1]


def as_matrix(parameter: Tensor, site: Site) -> Tensor:
    """A view (d_out, d_in) of *parameter*; a bias is one column, of experts the site's matrix."""
    if site.index is not None:
        parameter = parameter[site.index]
    if parameter.dim() == 1:
        return parameter.unsqueeze(1)
    return parameter.T if site.transposed else parameter
