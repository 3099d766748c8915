"""Export edits for llama.cpp and Ollama: as a GGUF adapter, or in a GGUF model.

The GGUF file of the base must hold, number for number, the matrices that the edits change. Where
llama.cpp is installed, the result is tried in it before it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmedit.edits.gguf_files import (
    BaseFile,
    pack_matrix,
    read_lora,
    read_tensor,
    write_lora,
    write_model,
)
from lmedit.edits.gguf_names import (
    architecture_of,
    check_gguf,
    check_rows,
    sites_by_name,
    tensor_names,
)
from lmedit.edits.ledger import check_fits, sum_of
from lmedit.edits.llamacpp_proof import Proof, runs_llamacpp
from lmedit.edits.lora import adapter_of
from lmedit.errors import ArtifactError
from lmedit.models.gguf_header import read_header
from lmedit.models.load import is_gguf
from lmedit.models.rounding import LEAST_KEPT, share_kept
from lmedit.storage.ours import check_place
from lmedit.types import Dense, LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.edits.gguf_files import Packed
    from lmedit.edits.llamacpp_proof import Agreement
    from lmedit.models import Lm
    from lmedit.types import Site


@dataclass(frozen=True)
class Written:
    """What was written: the rank or the kept share by site, and llama.cpp's agreement if tried."""

    agreement: Agreement | None
    rank: int | None = None
    lost: float = 0.0
    kept: Mapping[str, float] = field(default_factory=dict)


def find_base(base: Path | None, model: str) -> BaseFile | None:
    """The GGUF file of the base: *base*, else the file that *model* names; None if there is none.

    Its header is read here, and not again.

    Raises `ArtifactError` without the package gguf, and `ModelError` if the file is damaged.
    """
    check_gguf()
    found = base or (Path(model) if is_gguf(model) else None)
    return None if found is None else BaseFile(found, read_header(found))


def check_prover(base: BaseFile | None) -> None:
    """Raise `ArtifactError` unless an export on the GGUF file *base* can be tried in llama.cpp."""
    if not runs_llamacpp():
        raise ArtifactError("--prove needs llama.cpp; pip install 'lmedit[llamacpp]'")
    if base is None:
        raise ArtifactError("--prove needs the GGUF file of the base; give --base FILE.gguf")


def export_lora(
    lm: Lm,
    updates: Sequence[Update],
    out: Path,
    facts: Mapping[str, Any],
    *,
    base: BaseFile | None = None,
    rank: int | None = None,
) -> Written:
    """Write the sum of *updates* to *out* as a GGUF adapter for the GGUF file *base*.

    *facts* (JSON) are stored with it; a *rank* cuts dense changes. Without *base*, nothing compares
    the matrices, and llama.cpp is not asked. Raises `ArtifactError` where LoRA, llama.cpp or *base*
    do not allow it, or where the proof fails; then nothing is written.
    """
    check_gguf()
    check_place(out)
    _check_plain(lm)
    adapter = adapter_of(updates, rank)
    architecture = architecture_of(lm)
    names = tensor_names(lm, adapter.factors, architecture)
    if base is not None:
        check_base(lm, base, names)
    proof = _proof(lm, Update(adapter.factors), facts) if base is not None else None
    found: list[Agreement] = []

    def check(part: Path) -> None:
        if proof is not None and base is not None:
            found.append(proof.check_adapter(base.path, part))

    factors = {
        name: (adapter.factors[s].left, adapter.factors[s].right) for s, name in names.items()
    }
    write_lora(out, architecture, factors, facts, check)
    return Written(found[0] if found else None, adapter.rank, adapter.lost)


def export_model(
    lm: Lm,
    updates: Sequence[Update],
    out: Path,
    facts: Mapping[str, Any],
    *,
    base: BaseFile,
    kind: str,
) -> Written:
    """Write the GGUF file *base* with *updates* to *out*; changed matrices are stored as *kind*.

    A changed bias is stored as F32. All other tensors are copied byte for byte. Raises
    `ArtifactError` as `export_lora` does, and if *kind* rounds an edit away.
    """
    check_gguf()
    check_place(out)
    if out.exists() and out.samefile(base.path):
        raise ArtifactError(f"{out} is the base; choose another place")
    _check_plain(lm)
    names = tensor_names(lm, {s for update in updates for s in update.deltas}, architecture_of(lm))
    check_base(lm, base, names)
    changed, rounded, kept = _round(lm, updates, kind)
    proof = _proof(lm, rounded, facts)
    found: list[Agreement] = []

    def check(part: Path) -> None:
        if proof is not None:
            found.append(proof.check_model(base.path, part))

    write_model(out, base, {name: changed[site] for site, name in names.items()}, facts, check)
    return Written(found[0] if found else None, kept=kept)


def _check_plain(lm: Lm) -> None:
    """Raise `ArtifactError` if *lm* is quantised: no GGUF file holds the same numbers."""
    if (package := lm.packing) is not None:
        raise ArtifactError(
            f"{lm.name} is quantised by {package}, and no GGUF file holds its numbers; make the "
            "edit on the GGUF file that you serve (-m FILE.gguf), or use --format peft"
        )


def _round(
    lm: Lm, updates: Sequence[Update], kind: str
) -> tuple[dict[Site, Packed], Update, dict[str, float]]:
    """The changed matrices in the type *kind*, what they change, and the kept share by site.

    Raises `ArtifactError` if less than `LEAST_KEPT` of a change is kept.
    """
    changed, rounded, kept = {}, {}, {}
    for site, delta in sorted(sum_of(updates).deltas.items()):
        before = lm.weight(site).float().cpu()
        change = delta.dense().float().cpu()
        packed = pack_matrix(before + change, "F32" if site.parameter.endswith(".bias") else kind)
        left = packed.values - before
        kept[site.name] = share_kept(change, left)
        if not kept[site.name] >= LEAST_KEPT:
            raise ArtifactError(
                f"{packed.kind} keeps only {100 * kept[site.name]:.0f} % of the edit of "
                f"{site.name}; give --type F32, or --format gguf-lora"
            )
        changed[site], rounded[site] = packed, Dense(left)
    return changed, Update(rounded), kept


def check_base(lm: Lm, base: BaseFile, names: Mapping[Site, str]) -> None:
    """Raise `ArtifactError` unless the GGUF file *base* holds the matrices *names* of *lm*.

    Each is read as float32 and compared with the model's number by number.
    """
    file, header = base.path, base.header
    if header.architecture != architecture_of(lm):
        raise ArtifactError(
            f"{file} is a model of {header.architecture}, not of {architecture_of(lm)} as "
            f"{lm.name}; give the GGUF file of the patch's base"
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for site, name in names.items():
        if name not in tensors:
            raise ArtifactError(f"{file} has no tensor {name}; give the file of the patch's base")
        theirs = read_tensor(file, header, tensors[name])
        ours = lm.weight(site).float().cpu()
        theirs = theirs[:, None] if theirs.dim() == 1 else theirs
        if theirs.shape != ours.shape or not torch.equal(theirs, ours):
            raise ArtifactError(
                f"{file} does not hold the {name} that the patch was made on; make the edit on "
                "that file (-m FILE.gguf)"
            )


def _proof(lm: Lm, update: Update, facts: Mapping[str, Any]) -> Proof | None:
    """What llama.cpp must give; None if it is not installed."""
    if not runs_llamacpp():
        return None
    return Proof(lm, update, _texts(facts))


MOST = 5
"""How many facts of the patches are asked in llama.cpp."""


def _texts(facts: Mapping[str, Any]) -> list[str]:
    """The prompts of the first facts in *facts*."""
    found = []
    for edit in facts["edits"]:
        for request in [*edit.get("requests", []), edit.get("request", {})]:
            if request.get("prompt"):
                found.append(request["prompt"].replace("{}", request.get("subject") or "{}"))
    return found[:MOST]


def import_lora(lm: Lm, file: Path) -> Update:
    """Read the GGUF adapter *file* as an update of *lm*.

    Raises `ArtifactError` if it is no plain adapter of one rank, or does not fit the model.
    """
    check_gguf()
    architecture, factors = read_lora(file)
    if architecture != architecture_of(lm):
        raise ArtifactError(
            f"{file} is for a model of {architecture}, not for {lm.name}; give its base as -m"
        )
    sites = sites_by_name(lm, architecture)
    deltas = {}
    for name, (left, right) in factors.items():
        check_rows(name, architecture)
        if name not in sites:
            raise ArtifactError(f"{file} changes {name}, which {lm.name} does not have")
        deltas[sites[name]] = LowRank(left, right)
    update = Update(deltas, {"adapter": file.name})
    check_fits(lm, update)
    return update
