"""What lmedit uses of its libraries beyond their documented interfaces, each with its place.

A release that changes one of these fails the test that names it, and where lmedit relies on it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lmedit.guards.untouched import note_state, put_back
from lmedit.tiny import tiny_family, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = Path(__file__).parents[2] / "core" / "src" / "lmedit"
GUARDS: dict[str, tuple[str, str, Callable[[], None]]] = {}


def guard(where: str, word: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Note what a function checks (its first line), for the module *where* that holds *word*."""

    def note(check: Callable[[], None]) -> Callable[[], None]:
        GUARDS[check.__name__] = (where, word, check)
        return check

    return note


def states(length: int = 3) -> torch.Tensor:
    return torch.randn(2, 1, length, 4)


# ---- transformers: the cache


@guard("replay/kv_cache.py", "lazy_initialization")
def dynamic_layer() -> None:
    """DynamicLayer: lazy_initialization(keys, values), keys, values, get_seq_length."""
    from transformers.cache_utils import DynamicLayer

    layer, keys = DynamicLayer(), states()
    layer.lazy_initialization(keys, keys)
    assert layer.is_initialized
    layer.keys = layer.values = keys
    assert layer.get_seq_length() == 3


@guard("replay/kv_cache.py", "def update")
def layers_update() -> None:
    """A cache calls its layer's update(key_states, value_states) and passes on what it gives."""
    from transformers import DynamicCache

    from lmedit.replay.kv_cache import KeptLayer

    cache, keys, new = DynamicCache(), states(), states(1)
    cache.layers = [KeptLayer(keys, keys)]
    grown, _ = cache.update(new, new, 0)
    assert torch.equal(grown, torch.cat([keys, new], dim=-2))
    assert cache.get_seq_length() == 3


@guard("replay/kv_cache.py", "layer_class_to_replicate")
def no_more_layers() -> None:
    """A cache with layer_class_to_replicate None makes no layers of its own."""
    from transformers import DynamicCache

    assert hasattr(DynamicCache(), "layer_class_to_replicate")
    source = inspect.getsource(DynamicCache.__mro__[1].update)
    assert "layer_class_to_replicate" in source


@guard("replay/passes.py", "for keys, values, _ in cache")
def a_cache_is_read_in_threes() -> None:
    """Iterating over a cache gives (keys, values, something) for each layer."""
    from transformers import DynamicCache

    cache, keys = DynamicCache(), states()
    cache.update(keys, keys, 0)
    ((found, _, _),) = cache
    assert torch.equal(found, keys)


@guard("metrics/generate.py", "batch_select_indices")
def rows_of_a_cache() -> None:
    """DynamicCache.batch_select_indices keeps the rows it is given."""
    from transformers import DynamicCache

    cache, keys = DynamicCache(), states()
    cache.update(keys, keys, 0)
    cache.batch_select_indices(torch.tensor([1]))
    assert torch.equal(cache.layers[0].keys, keys[1:])


@guard("replay/passes.py", "past_key_values")
def a_model_fills_the_cache_it_is_given() -> None:
    """A model writes past_key_values in place, one layer a block."""
    from transformers import DynamicCache

    lm, cache = tiny_lm(), DynamicCache()
    ids = lm.batch([lm.encode("The tower")]).ids
    lm.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    assert len(cache.layers) == lm.n_layers
    assert cache.get_seq_length() == ids.shape[1]


# ---- transformers: models


@guard("models/structure.py", "pytorch_utils import Conv1D")
def conv1d() -> None:
    """pytorch_utils.Conv1D stores (d_in, d_out), and GPT-2 is made of it."""
    from transformers.pytorch_utils import Conv1D

    assert isinstance(tiny_lm().mlp_out_module(0), Conv1D)
    assert tuple(Conv1D(5, 3).weight.shape) == (3, 5)


@guard("models/families.py", "MODEL_FOR_MASKED_LM_MAPPING")
def masked_models() -> None:
    """MODEL_FOR_MASKED_LM_MAPPING is keyed by config class: BERT's is in, GPT-2's is not."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, BertConfig, GPT2Config

    assert BertConfig in MODEL_FOR_MASKED_LM_MAPPING
    assert GPT2Config not in MODEL_FOR_MASKED_LM_MAPPING
    assert BertConfig().is_decoder is False


@guard("models/offload.py", "all_tied_weights_keys")
def tied_weights() -> None:
    """PreTrainedModel.all_tied_weights_keys is keyed by the names of the second of two."""
    lm = tiny_lm()
    assert set(lm.model.all_tied_weights_keys) == {"lm_head.weight"}


@guard("models/load.py", "tie_weights")
def outlines_are_tied() -> None:
    """tie_weights ties also on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_lm().model.config)
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@guard("models/parts.py", "get_text_config")
def text_config() -> None:
    """config.get_text_config() has num_hidden_layers, hidden_size and model_type."""
    for family in ("gpt2", "bloom", "gemma3_text"):
        config = tiny_family(family).model.config.get_text_config()
        assert (config.num_hidden_layers, config.hidden_size) == (4, 16)
        assert config.model_type == family


@guard("replay/passes.py", '"position_ids": positions')
def positions() -> None:
    """Models that take position_ids name them in forward's signature."""
    for family, takes in (("gpt2", True), ("llama", True), ("bloom", False)):
        found = "position_ids" in inspect.signature(tiny_family(family).model.forward).parameters
        assert found is takes, family


# ---- accelerate and peft


@guard("models/offload.py", "weights_map")
def offloaded() -> None:
    """accelerate: _hf_hook, its weights_map (dataset, prefix) and execution_device."""
    from accelerate import cpu_offload

    lm = tiny_lm()
    expected = lm.snapshot(lm.mlp_out(0))
    model = cpu_offload(lm.model, torch.device("cpu"))
    path, _, name = lm.mlp_out(0).parameter.rpartition(".")
    hook: Any = model.get_submodule(path)._hf_hook
    found = [each for each in getattr(hook, "hooks", [hook]) if hasattr(each, "weights_map")]
    assert found
    store = found[0].weights_map
    while hasattr(store, "prefix"):
        store, name = store.dataset, store.prefix + name
    assert torch.equal(store[name], expected)
    assert torch.device(found[0].execution_device).type == "cpu"


@guard("models/offload.py", "state_dict")
def offloaded_to_files() -> None:
    """accelerate: what lies in files is read through an OffloadedWeightsLoader.state_dict."""
    from accelerate.utils import OffloadedWeightsLoader

    store = OffloadedWeightsLoader(state_dict={"a": torch.ones(1)})
    assert store.state_dict["a"] is store["a"]


@guard("edits/lora.py", "base_model.model.")
def names_in_adapters() -> None:
    """peft: an adapter's tensors are base_model.model.MODULE.lora_A.weight and lora_B."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    lm = tiny_lm()
    config = LoraConfig(r=1, target_modules=["transformer.h.0.mlp.c_proj"], fan_in_fan_out=True)
    found = get_peft_model_state_dict(get_peft_model(lm.model, config))
    at = "base_model.model.transformer.h.0.mlp.c_proj"
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == {f"{at}.lora_A.weight": (1, 64), f"{at}.lora_B.weight": (16, 1)}


@guard("edits/adapter_proof.py", "put_back(lm.model")
def adapters_are_taken_off() -> None:
    """peft: it only exchanges modules, so they can be put back."""
    from peft import LoraConfig, get_peft_model

    lm = tiny_lm()
    modules, before = list(dict(lm.model.named_modules())), note_state(lm.model)
    config = LoraConfig(r=1, target_modules=["transformer.h.0.mlp.c_proj"], fan_in_fan_out=True)
    get_peft_model(lm.model, config)
    assert list(dict(lm.model.named_modules())) != modules
    put_back(lm.model, before)
    assert list(dict(lm.model.named_modules())) == modules


# ---- torch


@guard("models/lm.py", "_version")
def versions_of_tensors() -> None:
    """torch: Tensor._version grows with every write."""
    weight = nn.Parameter(torch.zeros(2))
    before = weight._version
    with torch.no_grad():
        weight.add_(1)
    assert weight._version > before


@guard("guards/untouched.py", "_forward_pre_hooks")
def hooks_of_modules() -> None:
    """torch: modules hold their hooks in _forward_hooks and six more tables."""
    from lmedit.guards.untouched import HOOKS

    module = nn.Linear(1, 1)
    module.register_forward_pre_hook(lambda *_: None)
    module.register_forward_hook(lambda *_: None)
    held = {kind: len(getattr(module, kind)) for kind in HOOKS}
    assert {kind for kind, count in held.items() if count} == {
        "_forward_hooks",
        "_forward_pre_hooks",
    }


@pytest.mark.filterwarnings("ignore")  # of peft, about transformers and files it does not find
@pytest.mark.parametrize("name", GUARDS)
def test_a_library_is_as_lmedit_needs_it(name: str) -> None:
    where, _, check = GUARDS[name]
    try:
        check()
    except Exception as error:  # noqa: BLE001  (whatever has changed)
        what = (check.__doc__ or "").strip()
        pytest.fail(f"no longer so: {what} lmedit/{where} relies on it. {error!r}")


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_names_the_place_that_relies_on_it(name: str) -> None:
    where, word, check = GUARDS[name]
    assert check.__doc__
    assert word in (SOURCES / where).read_text(encoding="utf-8")
