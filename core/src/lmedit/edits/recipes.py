"""A recipe: a TOML file with a base, edits in their order, and the expected digests.

schema = 1                        # the number of this layout; optional
base = "gpt2-xl"                  # as for -m
digest = "9f2c..."                # of the base's weights; optional
weights = "03ab..."               # of the weights with all edits; optional
gate = "KL<0.02, ppl<1.05"        # limits that the result must hold; optional
near = "facts.jsonl"              # neighbours for the gate, as --near; optional
heldout = "text.txt"              # held-out text for the gate, as --heldout; optional
include_path = "tasks"            # your own tasks for the gate, as --include-path; optional

[[edit]]
patch = "eiffel.safetensors"      # a path from the recipe's folder
id = "77d1..."                    # or its beginning; optional
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from lmedit.edits.ledger import SHORT, update_digest
from lmedit.errors import ArtifactError
from lmedit.storage.json_files import SCHEMA, check_schema, read_toml
from lmedit.types import Frozen, first_complaint

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.edits.model_folders import EditedModel
    from lmedit.types import Update


class Edit(Frozen):
    """A patch file, and the id that its edit must have."""

    patch: str
    id: str = ""


class Recipe(Frozen):
    """A base, edits, and digests or their beginnings; an empty digest is not checked."""

    schema_number: int = Field(default=SCHEMA, alias="schema")
    base: str
    digest: str = ""
    weights: str = ""
    gate: str = ""
    near: str = ""
    heldout: str = ""
    include_path: str = ""
    edit: tuple[Edit, ...] = Field(min_length=1)

    def patches(self, recipe_path: Path) -> list[Path]:
        """The paths of the patch files; *recipe_path* is that of the recipe."""
        return [recipe_path.parent / edit.patch for edit in self.edit]

    def beside(self, recipe_path: Path, name: str) -> str | None:
        """The file *name* from the recipe's folder, or *name* itself if there is no such file."""
        file = recipe_path.parent / name
        return (str(file) if file.is_file() else name) or None

    def tasks_beside(self, recipe_path: Path) -> Path | None:
        """The folder of the gate's own tasks, from the recipe's folder; None if it names none."""
        return recipe_path.parent / self.include_path if self.include_path else None

    def check_base(self, model: EditedModel) -> None:
        """Raise `ArtifactError` if *model* has another base."""
        _check("the base", model.base["digest"], self.digest)

    def check_edits(self, found: list[Update]) -> None:
        """Raise `ArtifactError` if the patches hold other edits."""
        for edit, update in zip(self.edit, found, strict=True):
            _check(edit.patch, update_digest(update), edit.id)

    def check_result(self, model: EditedModel) -> None:
        """Raise `ArtifactError` if *model* has other edits or other weights."""
        ids = [entry.id for entry in model.ledger.entries]
        if len(ids) != len(self.edit):
            raise ArtifactError(f"the model has {len(ids)} edits, the recipe has {len(self.edit)}")
        for edit, found in zip(self.edit, ids, strict=True):
            _check(edit.patch, found, edit.id)
        _check("the result", model.lm.weights_digest(), self.weights)


def _check(what: str, found: str, wanted: str) -> None:
    if not found.startswith(wanted):
        raise ArtifactError(
            f"{what} is {found[:SHORT]}, the recipe says {wanted[:SHORT]}; give the right file, or "
            "correct the recipe"
        )


def read_recipe(path: Path) -> Recipe:
    """Read the recipe in *path*; raises `ArtifactError` that names the fault."""
    try:
        table = read_toml(path)
        check_schema(table.get("schema"))
        return Recipe.model_validate(table)
    except OSError as error:
        raise ArtifactError(f"cannot read recipe {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ArtifactError(f"{path} is not TOML ({error})") from error
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_complaint(error)}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not the text of a recipe ({error})") from error
