"""The frozen values that hooks exchange. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, ValidationError

from lmedit import _moved
from lmedit.charts.html import html_of
from lmedit.errors import RequestError
from lmedit.types.request import Frozen as Frozen
from lmedit.types.request import Join as Join
from lmedit.types.request import Request as Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from lmedit.charts import Chart


class Material(Protocol):
    """The data that a method is prepared on: texts or cases."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def digest(self) -> str:
        """A digest of the content; it is part of the cache key of a preparation."""


class Corpus(Material, Protocol):
    """Texts to prepare on: a name, a digest of the content, and the documents in order."""

    def __iter__(self) -> Iterator[str]:
        """Yield the documents in order."""


class TrainingCases(Material, Protocol):
    """Cases to train on: a name, a digest of the content, and the cases in order."""

    def __iter__(self) -> Iterator[Case]:
        """Yield the cases in order."""


class Probe(Frozen):
    """A prompt and its right answer."""

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other spellings that are right too."""


class FurtherEdit(Frozen):
    """One more fact that a case edits together with its request, and its paraphrases."""

    request: Request
    paraphrases: tuple[str, ...] = ()


class Case(Frozen):
    """A request and the prompts that judge the edit. A method receives only the requests."""

    id: str
    request: Request
    further: tuple[FurtherEdit, ...] = ()
    """Facts that are edited together with the request; the scores judge all of them at once."""
    relation: str | None = None
    """The relation's id in the data set, for example P103."""
    target_id: str | None = None
    """The id of the new answer. Together with the relation it selects the reference texts."""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    relations: tuple[Probe, ...] = ()
    """Other facts about the same subject; they should stay right after the edit."""
    locality: tuple[Probe, ...] = ()
    """Prompts about other things; they should stay right after the edit."""
    groups: Mapping[str, tuple[Probe, ...]] = Field(default_factory=dict)
    """Consequences of the edit, and facts that should stay, by the data set's own group name."""
    inserts_truth: bool = Field(default=False, description="whether the new answer is the true one")

    @property
    def requests(self) -> tuple[Request, ...]:
        """All facts that the case edits; most cases edit one."""
        return (self.request, *(each.request for each in self.further))


@dataclass(frozen=True, order=True)
class Site:
    """One parameter of a model, oriented as in the papers: ``v = W k`` with W (d_out, d_in).

    If ``transposed``, the module stores it as (d_in, d_out), as GPT-2's `Conv1D` does. A bias is a
    matrix (d_out, 1): the column of a constant input. With an ``index``, the parameter holds one
    matrix for each expert, and the site is the matrix of that expert.
    """

    parameter: str
    transposed: bool = False
    index: int | None = None

    @property
    def name(self) -> str:
        """The parameter's name; for the matrix of an expert with its number in brackets."""
        return self.parameter if self.index is None else f"{self.parameter}[{self.index}]"


@dataclass(frozen=True)
class LowRank:
    """A change of rank at most r: ``left @ right``, (d_out, r) @ (r, d_in)."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix that it changes."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """The change as a (d_out, d_in) matrix."""
        return self.left @ self.right

    def tensors(self) -> dict[str, Tensor]:
        """The factors by name, as a patch file stores them."""
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True)
class Dense:
    """A change of any rank, as a (d_out, d_in) matrix."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix that it changes."""
        return self.values.shape[0], self.values.shape[1]

    def dense(self) -> Tensor:
        """The change as a (d_out, d_in) matrix."""
        return self.values

    def tensors(self) -> dict[str, Tensor]:
        """The matrix by name, as a patch file stores it."""
        return {"values": self.values}


Delta = LowRank | Dense
DELTAS: Mapping[str, type[Delta]] = MappingProxyType({"low_rank": LowRank, "dense": Dense})


@dataclass(frozen=True)
class Prepared:
    """The data that a method computes once per model: tensors, and facts (JSON values)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Location:
    """The sites that a request would edit, the evidence for people, and values for later hooks."""

    sites: tuple[Site, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for people: `lmedit locate` prints them. No hook reads them."""
    charts: tuple[Chart, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)
    """Values of any type for the method's own later hooks. Nobody prints or stores them."""

    def _repr_html_(self) -> str:
        sites = [site.name for site in self.sites]
        return html_of({"sites": sites, **self.evidence}, self.charts)


@dataclass(frozen=True)
class Pooled:
    """By chart and series, a row per token with a number per block; subtract `baseline`'s mean."""

    rows: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
    baseline: float


@dataclass(frozen=True)
class Probed:
    """The measurements of `edit_probe`: JSON values, and charts of them."""

    values: Mapping[str, Any]
    charts: tuple[Chart, ...] = ()
    averages: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Values that can be averaged over facts: for each chart and series, one number per block."""
    pooled: Pooled | None = None
    """The same for `lmedit locate --pooling notebook`; None if the method has no such pooling."""

    def _repr_html_(self) -> str:
        return html_of(self.values, self.charts)


@dataclass(frozen=True)
class Update:
    """A computed edit: one delta per site, notes (JSON values), and values for later edits."""

    deltas: Mapping[Site, Delta]
    notes: Mapping[str, Any] = field(default_factory=dict)
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    """Values that later edits of this method need from this one; they change no weight."""

    def _repr_html_(self) -> str:
        changes = {site.name: _describe_change(delta) for site, delta in self.deltas.items()}
        return html_of({**changes, **self.notes})


@dataclass(frozen=True)
class Carried:
    """The `carry` of an edit that is in the model, with its method, base and options."""

    tensors: Mapping[str, Tensor]
    method: str
    base: str
    """The digest of the model without any edit."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The values of the options that are named in `Options.prepares`."""


@dataclass(frozen=True)
class Applied:
    """The old values of the changed parameters, in storage layout; `edit_revert` needs them."""

    before: Mapping[Site, Tensor]


@dataclass(frozen=True)
class Work:
    """The needs of a step, without the model: bytes for each purpose, and operations."""

    memory: Mapping[str, float]
    flops: float = 0.0


@dataclass(frozen=True)
class World:
    """A model with its own cases and texts, so that everything works offline."""

    model: Path | str
    """The model's folder, or the name of a model that `lmedit models pull` downloads."""
    cases: Path
    text: Path
    heldout: Path
    training: Path | None = None
    """Cases for training editors; no evaluation uses them."""
    tuned: Path | None = None
    """A file of tuned options by method, for a model whose folder does not contain one."""
    prepared: Path | None = None
    """A folder of preparations for the model, with one file NAME.safetensors for each method."""


def request_from(values: Mapping[str, Any]) -> Request:
    """Build a `Request` from *values*. Raises `RequestError` with one line if they do not fit."""
    try:
        return Request.model_validate(values)
    except ValidationError as error:
        raise RequestError(first_complaint(error)) from None


def first_complaint(error: ValidationError) -> str:
    """Pydantic's first complaint as `field: what was expected`, or our own message alone."""
    complaint = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in complaint["loc"])
    what = complaint["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _describe_change(delta: Delta) -> str:
    """The shape of a changed matrix, the rank of the change if known, and its Frobenius norm."""
    rows, columns = delta.shape
    left = delta.tensors().get("left")
    rank = "dense" if left is None else f"rank {left.shape[1]}"
    return f"{rows} x {columns}, {rank}, norm {delta.dense().norm():.4g}"


def __getattr__(name: str) -> Any:
    """Find `Options` and `Method`, which moved to `lmedit.options` after version 0.1."""
    return _moved.moved_name(__name__, name)
