"""Second moments on disk: find, list, verify, export and import them.

A file's name is a digest of the model below the layer, the layer, the corpus and the sample size.
So no file can be taken for another one.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmedit.errors import ArtifactError, CasesError
from lmedit.stats.counting import Counting, Moment, Place, places_of, second_moments
from lmedit.stats.self_written import SelfWritten
from lmedit.stats.solving import condition, positive_factor
from lmedit.storage.arrays import OtherShapeError, read_npz
from lmedit.storage.atomic import write_whole
from lmedit.storage.cache import cache_folder, key_of
from lmedit.storage.ours import MARK, check_place
from lmedit.storage.tensors import STATISTICS, Checkpoint, load_tensors, read_facts, save_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.types import Corpus

PREFIX = "stats:"
"""The prefix of the id of stored statistics, where a corpus is expected."""
AT_ONCE = 4e9
"""The largest size in bytes of the sums of one pass."""
SHORT = 12
MOST = 1e15
"""Numbers of keys and documents are smaller than this."""
"""How many digits of an id are shown."""
NEGATIVE = 1e-5
"""Rounding in float32 gives eigenvalues down to minus this share of the largest one."""


@dataclass(frozen=True)
class Statistics:
    """A stored file: its id, its path, and its facts (JSON values).

    A method can be prepared on it in place of a corpus.
    """

    id: str
    path: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The name for the user."""
        return f"{PREFIX}{self.id[:SHORT]}"

    @property
    def digest(self) -> str:
        """The id."""
        return self.id

    def __iter__(self) -> Iterator[str]:
        """Raise `CasesError`, because the texts are not stored."""
        raise CasesError(f"{self.name} holds statistics, no text; give a text as --corpus")

    def moment(self) -> Moment:
        """The sum; raises `ArtifactError` if its checksum is wrong."""
        tensors, facts = load_tensors(self.path, STATISTICS)
        return Moment(tensors["sum"], facts["tokens"], facts["documents"], facts=facts)

    def of(self, lm: Lm, layer: int) -> Moment:
        """The sum; raises `ArtifactError` if it belongs to another model or layer."""
        expert = self.facts.get("expert")
        other = (expert is None) != (lm.experts(layer) is None)
        if self.facts["layer"] != layer or other or not self._fits(lm, layer):
            raise ArtifactError(
                f"{self.name} is of layer {self.facts['layer']} of {self.facts['base_name']} "
                f"({self.facts['base'][:SHORT]}, {self.facts.get('number_type', 'unknown type')}), "
                f"not of layer {layer} of {lm.name} ({lm.digest[:SHORT]}, {lm.dtype_name}); "
                "lmedit stats list shows the stored ones"
            )
        return self.moment()

    def _fits(self, lm: Lm, layer: int) -> bool:
        """Whether *lm* has the same keys; files of version 0.1 name only the whole weights."""
        below = self.facts.get("below")
        return (
            self.facts["base"] == lm.digest if below is None else below == lm.identity_below(layer)
        )

    def verify(self) -> float:
        """The condition number; raises `ArtifactError` if the sum cannot be a second moment.

        It is infinite if the sum is singular, as it is for fewer keys than dimensions.
        """
        moment = self.moment()
        S = moment.sum
        if S.dim() != 2 or S.shape[0] != S.shape[1] or not bool(S.isfinite().all()):
            raise ArtifactError(f"{self.path} holds no finite square matrix; delete it")
        if not torch.allclose(S, S.T, rtol=1e-5, atol=1e-6 * float(S.abs().max())):
            raise ArtifactError(f"{self.path} holds a matrix that is not symmetric; delete it")
        if not 0 < moment.tokens < MOST or not 0 <= moment.documents < MOST or not S.trace() > 0:
            raise ArtifactError(f"{self.path} holds no sum of keys; delete it")
        slack = 1e-6 * float(S.abs().max()) * torch.eye(len(S), dtype=torch.float64)
        if int(torch.linalg.cholesky_ex(S.double() + slack).info):
            raise ArtifactError(f"{self.path} holds a matrix that is not positive; delete it")
        L = positive_factor(S, moment.tokens)
        if L is not None:
            return condition(L)
        values = torch.linalg.eigvalsh(S.double())
        if values[0] < -NEGATIVE * values[-1]:
            raise ArtifactError(
                f"{self.path} has a negative eigenvalue, so it is not a sum of k k^T; delete it"
            )
        return float("inf")


def _folder() -> Path:
    return cache_folder() / "statistics"


def list_statistics() -> list[Statistics]:
    """All stored statistics that can be read, sorted by id."""
    return [one for one in _all_stored() if isinstance(one, Statistics)]


def damaged_statistics() -> list[ArtifactError]:
    """The error of each stored file that cannot be read."""
    return [one for one in _all_stored() if isinstance(one, ArtifactError)]


def _all_stored() -> Iterator[Statistics | ArtifactError]:
    for path in sorted(_folder().glob("*.safetensors")):
        try:
            yield _open_stored(path)
        except ArtifactError as error:
            yield error


def _open_stored(path: Path) -> Statistics:
    return Statistics(path.stem, path, _sound(path, read_facts(path, STATISTICS)))


TEXTS = ("base", "base_name", "parameter", "corpus", "corpus_digest")
NUMBERS = ("layer", "dimensions", "tokens", "documents")


def _sound(path: Path, facts: Any) -> dict[str, Any]:
    """*facts* of statistics, if they have the right names and kinds; else `ArtifactError`."""
    good = (
        isinstance(facts, dict)
        and all(isinstance(facts.get(name), str) for name in TEXTS)
        and all(type(facts.get(name)) is int for name in NUMBERS)
        and isinstance(facts.get("counting"), dict | None)
    )
    if not good:
        raise ArtifactError(f"{path} has other facts than statistics of lmedit; delete it")
    return dict(facts)


def statistics_named(name: str) -> Statistics:
    """The statistics whose id begins with *name* (with or without ``stats:``).

    Raises `ArtifactError` if there are none or several.
    """
    start = name.removeprefix(PREFIX)
    found = [
        path
        for path in sorted(_folder().glob("*.safetensors"))
        if start and path.stem.startswith(start)
    ]
    if len(found) != 1:
        what = "several statistics begin" if found else "no statistics begin"
        raise ArtifactError(f"{what} with {start!r}; lmedit stats list shows the stored ones")
    return _open_stored(found[0])


def _facts(
    lm: Lm, place: Place, corpus: str, digest: str, counting: Counting | None
) -> dict[str, Any]:
    """The facts of statistics: everything that determines the id, and names for the reader."""
    where = (place,) if isinstance(place, int) else place
    return {
        "base": lm.digest,
        "below": lm.identity_below(where[0]),
        "base_name": lm.name,
        "number_type": lm.dtype_name,
        "layer": where[0],
        "parameter": lm.mlp_out(*where).name,
        "corpus": corpus,
        "corpus_digest": digest,
        "counting": asdict(counting) if counting else None,
    } | ({"expert": where[1]} if len(where) > 1 else {})


def _path(facts: Mapping[str, Any]) -> Path:
    """The file's place. Its name holds everything that the sum depends on.

    The keys of a layer depend on the model below it only (`Lm.identity_below`), so a model that is
    edited further up finds the same file.
    """
    names = ("layer", "expert", "corpus_digest", "counting")
    parts = {name: facts[name] for name in names if name in facts}
    key = key_of(base=facts.get("below", facts["base"]), **parts)
    return _folder() / f"{key[:32]}.safetensors"


def _store(facts: dict[str, Any], moment: Moment) -> Statistics:
    path = _path(facts)
    facts = {
        **facts,
        "dimensions": len(moment.sum),
        "tokens": moment.tokens,
        "documents": moment.documents,
        "settled": [asdict(each) for each in moment.settled],
    }
    save_tensors(path, STATISTICS, {"sum": moment.sum}, facts)
    return _open_stored(path)


def moments_of(
    lm: Lm, layers: Sequence[int], corpus: Corpus, counting: Counting, checkpoint: Checkpoint
) -> dict[Place, Statistics]:
    """The statistics of *layers*. Missing ones are computed in one pass and stored.

    A block of experts has statistics of each expert (`places_of`). If the sums need more than
    4 GB, there are several passes.
    """
    counting = replace(counting, max_length=counting.limit(lm))
    if isinstance(corpus, SelfWritten):
        counting = corpus.counting(counting)
    of = {n: _facts(lm, n, corpus.name, corpus.digest, counting) for n in places_of(lm, layers)}
    found = {n: _open_stored(path) for n, facts in of.items() if (path := _path(facts)).is_file()}
    missing = [layer for layer in of if layer not in found]
    while missing:
        first = missing[0] if isinstance(missing[0], int) else missing[0][0]
        size = 8 * lm.mlp_width(first) ** 2
        part = missing[: max(1, int(AT_ONCE / size))]
        del missing[: len(part)]
        state = Checkpoint(checkpoint.path.with_suffix(f".{key_of(layers=part)[:8]}"))
        for layer, moment in second_moments(lm, part, corpus, counting, state).items():
            found[layer] = _store(of[layer], moment)
        state.clear()
    return found


NPZ = ("mom2.mom2", "mom2.count")
"""The arrays of the released statistics: the sum of k k^T in float32, and the number of keys."""


def export_statistics(one: Statistics, path: Path) -> None:
    """Write *one* to *path*: a .npz file in the format of the released codes, or else a copy."""
    check_place(path)
    if path.suffix != ".npz":
        with write_whole(path) as part:
            shutil.copyfile(one.path, part)
        return
    moment = one.moment()
    arrays = {
        "mom2.mom2": moment.sum.float().numpy(),
        "mom2.count": np.array(moment.tokens),
        "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
        "sample_size": np.array(moment.documents),
    }
    with write_whole(path) as part, part.open("w+b") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = MARK.encode()


def import_statistics(path: Path, lm: Lm | None = None, layer: int | None = None) -> Statistics:
    """Store a file: one of `export_statistics`, or a released .npz file.

    A .npz file names no model, so it needs *lm* and *layer*. Raises `ArtifactError`.
    """
    if path.suffix != ".npz":
        tensors, facts = load_tensors(path, STATISTICS)
        place = _path(_sound(path, facts))
        if set(tensors) != {"sum"}:
            raise ArtifactError(f"{path} holds no sum of keys; export it again")
        try:
            Statistics(path.stem, path, facts).verify()
        except ArtifactError as error:
            raise ArtifactError(f"{path} was not imported: {error}") from error
        save_tensors(place, STATISTICS, tensors, facts)
        return _open_stored(place)
    if lm is None or layer is None:
        raise ArtifactError(f"{path} names no model; give -m MODEL and --layer N")
    if not 0 <= layer < lm.n_layers:
        raise ArtifactError(f"{lm.name} has layers 0 to {lm.n_layers - 1}, not {layer}")
    size = lm.mlp_width(layer)
    S, tokens, documents = _from_npz(path, size)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = _facts(lm, layer, f"imported from {path.name}", digest, None)
    one = _store(facts, Moment(S, tokens, documents))
    try:
        one.verify()
    except ArtifactError as error:
        one.path.unlink()
        raise ArtifactError(f"{path} was not imported: {error}") from error
    return one


def _whole(count: Any) -> int:
    """*count* as a whole number; raises `ValueError` if it is not one."""
    if not 0 <= float(count) < MOST or float(count) != int(count):
        raise ValueError(f"{count} is not a number of keys or documents")
    return int(count)


def _from_npz(path: Path, size: int) -> tuple[torch.Tensor, int, int]:
    """The sum in float64, and the numbers of keys and documents; nothing is unpickled."""
    try:
        S, count, documents = read_npz(path, (*NPZ, "sample_size"), ((size, size), (), ()))
        if S is None or count is None:
            raise ValueError("an array is missing")
        counts = [_whole(each) for each in (count, 0 if documents is None else documents)]
        return torch.from_numpy(S.astype(np.float64)), counts[0], counts[1]
    except OtherShapeError as error:
        raise ArtifactError(
            f"{path} holds {error.shape}, the keys of this layer have {size} dimensions; the file "
            "belongs to another model"
        ) from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ArtifactError(
            f"{path} is not a .npz file of the released statistics ({error}); "
            f"it must hold {' and '.join(NPZ)}"
        ) from error
