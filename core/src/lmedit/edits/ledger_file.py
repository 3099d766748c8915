"""The file `lmedit-ledger.json` of a model folder: what it holds, and its checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lmedit.errors import ArtifactError
from lmedit.storage.json_files import SCHEMA, check_schema, read_json
from lmedit.types import Frozen, first_complaint

if TYPE_CHECKING:
    from pathlib import Path


class _Base(Frozen):
    name: str
    digest: str


class _Edit(BaseModel):
    """An edit in the ledger: its id, and the facts of its patch."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str = Field(pattern="^[0-9a-f]{64}$")
    request: dict[str, Any] = Field(default_factory=dict)


class _Limit(Frozen):
    term: str
    sign: str
    number: float


class _Measured(BaseModel):
    """The values of a gate, and its limits."""

    model_config = ConfigDict(frozen=True, extra="allow")

    limits: list[_Limit]
    passed: bool
    values: dict[str, float]
    measured_on: str


class _Head(Frozen):
    """The content of `lmedit-ledger.json`."""

    schema_number: int = Field(default=SCHEMA, alias="schema")
    base: _Base
    number_type: str
    weights: str
    touched: list[tuple[str, bool] | tuple[str, bool, int]]
    edits: list[_Edit]
    gate: _Measured | None = None
    """What the gate of `lmedit apply` measured; None without a gate."""

    @field_validator("edits")
    @classmethod
    def _check_ids(cls, edits: list[_Edit]) -> list[_Edit]:
        if len({edit.id for edit in edits}) < len(edits):
            raise ValueError("an edit stands in it twice")
        return edits


def read_head(path: Path) -> dict[str, Any]:
    """The content of the ledger file *path*. Raises `ArtifactError` if it is damaged."""
    try:
        head = read_json(path)
        check_schema(head.get("schema") if isinstance(head, dict) else None)
        _Head.model_validate(head)
    except ValidationError as error:
        what = f"{path} is damaged ({first_complaint(error)}); apply the patches again"
        raise ArtifactError(what) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); apply the patches again") from error
    return head
