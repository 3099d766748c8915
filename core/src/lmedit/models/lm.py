"""`Lm`: a Hugging Face decoder and its tokenizer, as the methods use them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from lmedit.errors import ModelError, RequestError, checks_kinds
from lmedit.models import families, offload, quantised, tokens
from lmedit.models.asking import Asked
from lmedit.models.gguf import drop_remainder
from lmedit.models.identity import Identified
from lmedit.models.joints import Joints
from lmedit.models.parts import Parts
from lmedit.storage.digests import KnownTensors, digest_tensors
from lmedit.storage.shield import own_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmedit.models.undo import OpenBlock
    from lmedit.types import Site


class Lm(Asked, Identified, Parts):
    """A decoder language model with named parts.

    The model computes in evaluation mode. Only `add` and `restore` change its weights, and only the
    apply and revert hooks call these. Device and dtype are the model's own.
    """

    prepared: Path | None = None
    notes: Sequence[str] = ()
    """A folder of preparations besides its own; notes for its user on how it was loaded."""
    asked_type: str = "auto"
    """The number type that the user asked for; auto: that of the checkpoint."""

    @checks_kinds
    def __init__(  # noqa: PLR0913
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str = "",
        tuned: Mapping[str, Any] = MappingProxyType({}),
        text: Path | None = None,
        training: Path | None = None,
        folder: Path | None = None,
        again: Callable[[], PreTrainedModel] | None = None,
        parts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Wrap *model*. *tuned* are its tuned options by method; *folder* contains its files.

        Without a *tokenizer* it is an outline, which reads no text. *text* is its own corpus,
        *training* its own cases for training editors. *again* loads the model again. *parts* names
        parts that are not found (`options.PARTS`).

        Raises `UnknownArchitectureError` if a part of the model is not found.
        """
        model = getattr(model, "_orig_mod", model)  # of torch.compile, which shares the weights
        if any(module._compiled_call_impl is not None for module in model.modules()):
            raise ModelError("the model is compiled, so it does not see edits; give it uncompiled")
        self.model = model.eval()
        drop_remainder(model)
        self.tokenizer: Any = tokenizer
        self.name = name or str(model.config.name_or_path or type(model).__name__)
        quantised.check_packing(self.name, model)
        self._packed, self._beside = quantised.find_packed(self.name, model), quantised.Beside()
        if tokenizer is not None:  # an outline has plain matrices
            quantised.check_found(self.name, model, self._packed)
        self.tuned, self.folder = tuned, folder
        self.text, self.training = text, training
        self._again = again
        self._known = KnownTensors()
        self.joints = Joints()
        self.named_parts = parts
        self.family = families.family_of(model, parts)
        self._chosen = {}
        self.lock = threading.RLock()
        """Held by the thread that computes with the model or changes it."""
        self.open_blocks: tuple[OpenBlock, ...] = ()
        """The blocks in which an edit is applied, the oldest first."""
        self._note_buffers()

    @property
    def number_types(self) -> tuple[torch.dtype, ...]:
        """The number type of every parameter, in the model's order."""
        return tuple(parameter.dtype for parameter in self.model.parameters())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the model's lock and its evaluation mode in the block; then restore the modes."""
        with own_turn(self.lock):
            training = [module for module in self.model.modules() if module.training]
            try:
                for module in training:
                    module.training = False
                yield
            finally:
                for module in training:
                    module.training = True

    def weights_digest(self, sites: Iterable[Site] | None = None) -> str:
        """SHA-256 of the present weights: of all parameters, or of the parameters of *sites*."""
        chosen = self.parameters if sites is None else {site.parameter for site in sites}
        return digest_tensors((name, self._read_for_digest(name)) for name in sorted(chosen))

    def digest_of(self, names: Iterable[str]) -> str:
        """SHA-256 of the present parameters *names*; it reads only what changed since last time."""
        return self._known.digest(names, self._write_state, self._read_for_digest)

    def state(self) -> str:
        """SHA-256 of the present weights; it reads only tensors that changed since the last call.

        For caches of values that depend on the weights. It relies on torch's write counters, which
        do not see a write through ``.data``; `weights_digest` relies on nothing.
        """
        return self.digest_of(self.parameters)

    def renew(self) -> bool:
        """Load the model again, to replace one that somebody changed; all of it is new.

        False if it was not loaded from a file, or if the file now holds another model.
        """
        digest = self.digest
        if self._again is None:
            return False
        del self.model  # so that memory for one model is enough
        self.model = self._again().eval()
        self._packed, self._beside = (
            quantised.find_packed(self.name, self.model),
            quantised.Beside(),
        )
        self._known = KnownTensors()
        return self.weights_digest() == digest

    @property
    def revision(self) -> str | None:
        """The model's commit on the hub; None for a folder."""
        found = getattr(self.model.config, "_commit_hash", None)
        return None if found is None else str(found)

    @property
    def device(self) -> torch.device:
        """The device for token ids: the device on which the input embedding computes."""
        return offload.runs_on(self.model.get_input_embeddings())

    def device_of(self, site: Site) -> torch.device:
        """The device that multiplies with the matrix of *site*; its values may be elsewhere."""
        return offload.runs_on(self.model.get_submodule(site.parameter.rpartition(".")[0]))

    @property
    def parameters(self) -> frozenset[str]:
        """The names of all parameters; of tied parameters only the first.

        A quantised matrix counts as one, also where its module holds no parameter of that name.
        """
        return offload.names(self.model) | self._packed.keys()

    def _write_state(self, name: str) -> tuple[int, int]:
        if name in self._packed:
            return self._beside.write_state(name, self._packed[name])
        if offload.lies_in_file(self.model, name):
            return -1, -1  # nobody writes to the file
        values = self._values(name)
        return values._version, values.data_ptr()

    def _values(self, name: str) -> Tensor:
        if name in self._packed:
            return self._beside.values(name, self._packed[name])
        return offload.fetch(self.model, name).detach()

    def _read_for_digest(self, name: str) -> Tensor:
        """The numbers that identify the present values of the parameter *name*."""
        if name in self._packed:
            return self._beside.read_for_digest(name, self._packed[name])
        return self._values(name)

    @property
    def working_dtype(self) -> torch.dtype:
        """The dtype of the weights, but at least float32: for optimisation and for deltas."""
        return torch.promote_types(self.model.get_input_embeddings().weight.dtype, torch.float32)

    @property
    def dtype_name(self) -> str:
        """The dtype of the weights by name, for example float32."""
        return str(self.model.get_input_embeddings().weight.dtype).removeprefix("torch.")

    def stores(self, site: Site) -> bool:
        """Whether the model stores the parameter of *site* in the orientation of *site*."""
        values = self._values(site.parameter)
        if values.dim() == 1:
            return not site.transposed
        if (site.index is None) == (values.dim() == EXPERTS):
            return False
        module = self.model.get_submodule(site.parameter.rpartition(".")[0])
        fits = site.index is None or 0 <= site.index < len(values)
        return fits and site.transposed == families.is_transposed(module)

    def weight(self, site: Site) -> Tensor:
        """The parameter of *site* as a view (d_out, d_in), in either storage layout."""
        return families.as_matrix(self._values(site.parameter), site)

    def embeddings(self, side: Literal["input", "output"]) -> Tensor:
        """The table (V, H) of the input embeddings, or of the output embeddings (the head)."""
        module = {
            "input": self.model.get_input_embeddings,
            "output": self.model.get_output_embeddings,
        }[side]()
        (path,) = (name for name, each in self.model.named_modules() if each is module)
        return self._values(f"{path}.weight").to(offload.runs_on(module))

    def snapshot(self, site: Site) -> Tensor:
        """A copy of the parameter of *site*, or of one expert's part, in its storage layout."""
        return _part(self._values(site.parameter), site).clone()

    def weight_plus(self, site: Site, change: Tensor) -> Tensor:
        """The matrix of *site* plus *change* (d_out, d_in), as `add` would store it."""
        weight = self.weight(site)
        finer = torch.promote_types(torch.promote_types(weight.dtype, change.dtype), torch.float32)
        return (weight.to(finer) + change.to(weight.device, finer)).to(weight.dtype)

    @torch.no_grad()
    def add(self, site: Site, change: Tensor) -> None:
        """Add *change* (d_out, d_in). The sum is in float32 or finer and is rounded once.

        A quantised matrix stays as it is, and the sum lies beside it.
        """
        if site.parameter in self._packed:
            self._put_beside(site, self.weight_plus(site, change))
            return
        weight = families.as_matrix(
            offload.fetch_to_memory(self.model, site.parameter).detach(), site
        )
        weight.copy_(self.weight_plus(site, change))

    @torch.no_grad()
    def restore(self, site: Site, values: Tensor) -> None:
        """Copy *values*, which `snapshot` returned, back into the parameter of *site*."""
        if site.parameter in self._packed:
            self._put_beside(site, values)
            return
        _part(offload.fetch_to_memory(self.model, site.parameter), site).copy_(values)

    def _put_beside(self, site: Site, values: Tensor) -> None:
        self._beside.put(site.parameter, self._packed[site.parameter], values)

    @property
    def packing(self) -> str | None:
        """The package that packs the model's matrices; None if all are plain numbers.

        Edits of such a model lie beside its matrices (`lmedit.models.quantised`).
        """
        return quantised.how_quantised(self.model)

    def batch(self, rows: Sequence[Sequence[int]]) -> tokens.Batch:
        """Rows of ids as one right-padded batch on the model's device.

        Raises `RequestError` for an empty row, and for one that is longer than the model reads.
        """
        for row in rows:
            if not 0 < len(row) <= self.max_positions:
                raise RequestError(
                    f"a text has {len(row)} tokens; {self.name} reads 1 to {self.max_positions}"
                )
        return tokens.pad(rows, self.device)

    def logits(self, batch: tokens.Batch) -> Tensor:
        """Next-token logits (B, T, V) at every position, in the model's dtype.

        Padding is not masked. It is on the right, where no true token of a causal model looks. A
        position without anything to look at gives NaN in some attention functions.
        """
        everything = torch.ones_like(batch.ids)
        with self.evaluating():
            out = self.model(input_ids=batch.ids, attention_mask=everything, use_cache=False)
        logits: Tensor = out.logits
        return logits

    def _running(self, ids: Sequence[int]) -> Callable[[], object]:
        return lambda: self.logits(self.batch([ids]))

    @torch.no_grad()
    def _next(self, ids: Sequence[int]) -> Tensor:
        return self.logits(self.batch([ids]))[0, -1].float().softmax(-1)

    def next_probabilities(self, prompt: str) -> Tensor:
        """The probability of every token after *prompt*, (V,), in float32."""
        return self._next(self.encode(prompt))


EXPERTS = 3
"""Dimensions of a parameter with one matrix for each expert."""


def _part(values: Tensor, site: Site) -> Tensor:
    """The part of a parameter that belongs to *site*, as a view."""
    return values if site.index is None else values[site.index]
