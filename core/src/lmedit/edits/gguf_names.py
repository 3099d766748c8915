"""The names that llama.cpp gives to a model's matrices, by the package gguf's own tensor map.

GGUF files hold every matrix as (d_out, d_in), also those that GPT-2 stores transposed. For some
families llama.cpp stores the attention's matrices in another order of rows. Those are refused.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from lmedit.models import Lm
    from lmedit.types import Site

ARCHITECTURES = MappingProxyType(
    {
        "mistral": "llama",
        "gpt_neox": "gptneox",
        "phi": "phi2",
        "gemma3_text": "gemma3",
        "gemma3": "gemma3",
        "cohere": "command-r",
        "qwen2_moe": "qwen2moe",
        "qwen3_moe": "qwen3moe",
    }
)
"""The architecture in llama.cpp of a family whose name in transformers differs."""
NOT_RUN = frozenset({"gptj", "gpt_neo", "opt"})
"""Families of lmedit that llama.cpp does not run, although the package gguf knows a name."""
SAME_ROWS = frozenset({"ffn_down", "ffn_up", "ffn_gate", "attn_output"})
"""Matrices that llama.cpp stores with the rows of transformers, in every family."""
SAME_ATTENTION = frozenset({"gpt2", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi2", "phi3"})
"""Architectures whose other attention matrices keep the rows of transformers too."""
ATTENTION = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv"})
PREFIXES = ("", "transformer.", "model.", "language_model.", "model.language_model.")
"""What may stand before the name that the tensor map knows."""
OTHER_WAY = "use lmedit apply, which writes a folder for transformers"


def check_gguf() -> None:
    """Raise `ArtifactError` if the package gguf is not installed."""
    if find_spec("gguf") is None:
        raise ArtifactError("GGUF files need the package gguf; pip install 'lmedit[gguf]'")


def architecture_of(lm: Lm) -> str:
    """The name of the family of *lm* in llama.cpp. Raises `ArtifactError` if it has none."""
    from gguf.constants import MODEL_ARCH_NAMES

    found = ARCHITECTURES.get(lm.model_type, lm.model_type)
    if found in NOT_RUN or found not in MODEL_ARCH_NAMES.values():
        raise ArtifactError(
            f"llama.cpp has no architecture for {lm.name} (family {lm.model_type}); {OTHER_WAY}"
        )
    return found


def tensor_names(lm: Lm, sites: Iterable[Site], architecture: str) -> dict[Site, str]:
    """The name of each of *sites* in a GGUF file, with its ending ``.weight`` or ``.bias``.

    Raises `ArtifactError` that names the first site that a GGUF file cannot express.
    """
    known = _tensor_map(lm, architecture)
    return {site: _name(known, site, architecture) for site in sites}


def sites_by_name(lm: Lm, architecture: str) -> dict[str, Site]:
    """Every matrix of *lm* that a GGUF adapter can change, by its name in a GGUF file."""
    known = _tensor_map(lm, architecture)
    found: dict[str, Site] = {}
    for parameter in sorted(lm.parameters):
        if parameter.endswith(".weight"):
            site = lm.site_of(parameter.removesuffix(".weight"))
            with suppress(ArtifactError):
                found[_name(known, site, architecture)] = site
    return found


def _tensor_map(lm: Lm, architecture: str) -> Any:
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH_NAMES

    (kind,) = (key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(kind, lm.n_layers)


def _name(known: Any, site: Site, architecture: str) -> str:
    if site.index is not None:
        raise ArtifactError(
            f"the edit changes one expert's matrix ({site.name}); lmedit writes no GGUF file of "
            f"that; {OTHER_WAY}"
        )
    module, _, ending = site.parameter.rpartition(".")
    tries = (module.removeprefix(prefix) for prefix in PREFIXES if module.startswith(prefix))
    names = [known.get_name(f"{before}{each}") for each in tries for before in ("", "model.")]
    found = next((name for name in names if name), None)
    if found is None or ending not in {"weight", "bias"}:
        raise ArtifactError(
            f"the package gguf names no tensor of {architecture} for {site.name}; {OTHER_WAY}"
        )
    check_rows(f"{found}.{ending}", architecture)
    return f"{found}.{ending}"


def check_rows(tensor: str, architecture: str) -> None:
    """Raise `ArtifactError` if llama.cpp may store *tensor* in another order of rows."""
    kind = tensor.rpartition(".")[0].rpartition(".")[2]
    same = kind in SAME_ROWS or (kind in ATTENTION and architecture in SAME_ATTENTION)
    if not same:
        raise ArtifactError(
            f"llama.cpp may store {tensor} of {architecture} in another order of rows than "
            f"transformers; {OTHER_WAY}"
        )
