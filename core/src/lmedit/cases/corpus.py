"""Texts to prepare on: a world's own, a text file or folder, or a well-known corpus of the hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import need
from lmedit.errors import CasesError
from lmedit.models import worlds
from lmedit.models.refusals import first_line
from lmedit.storage.digests import file_digest
from lmedit.storage.json_files import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
}
"""Corpora by name: data set and configuration on the hub; the texts are in the field `text`."""


@dataclass(frozen=True)
class FileCorpus:
    """Text files with one document per line; a `.jsonl` file has the text in the field ``text``."""

    name: str
    files: tuple[Path, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files in order: how each is read, its size and its bytes."""
        total = hashlib.sha256()
        for file in self.files:
            data = file.read_bytes()
            total.update(f"{file.suffix == '.jsonl'}|{len(data)}|".encode() + data)
        return total.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """Yield the non-empty lines of all files in order."""
        for file in self.files:
            try:
                with file.open(encoding="utf-8") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield self._text(file, number, line.rstrip("\n"))
            except UnicodeDecodeError as error:
                what = f"{file} is not UTF-8 text ({error.reason}); convert it"
                raise CasesError(what) from error

    @staticmethod
    def _text(file: Path, number: int, line: str) -> str:
        if file.suffix != ".jsonl":
            return line
        try:
            return need(parse_json(line), "text", str)
        except ValueError as error:
            what = f"{file}, line {number}: give a JSON object with the field text ({error})"
            raise CasesError(what) from error


@dataclass(frozen=True)
class HubCorpus:
    """A corpus of the hub, streamed with `datasets`; or a folder in the hub's layout."""

    name: str
    source: str
    config: str | None

    @cached_property
    def revision(self) -> str | None:
        """The data set's present commit on the hub; None for a folder. lmedit reads it.

        Raises `CasesError` if the hub does not answer.
        """
        if Path(self.source).is_dir():
            return None
        from huggingface_hub import dataset_info

        try:
            return str(dataset_info(self.source).sha)
        except Exception as error:  # its network library has errors of its own
            what = f"cannot read corpus {self.name!r}: {first_line(error)}"
            raise CasesError(f"{what}; check the network, or give a file") from error

    @cached_property
    def digest(self) -> str:
        """A digest of the data set, the configuration, the split, and the commit or the files."""
        total = hashlib.sha256(f"{self.source}|{self.config}|train|{self.revision}".encode())
        if self.revision is None:
            for file in sorted(p for p in Path(self.source).rglob("*") if p.is_file()):
                total.update(f"{file.relative_to(self.source)}|{file_digest(file)}|".encode())
        return total.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """Yield the documents in order, without the empty ones."""
        import datasets

        try:
            rows: Any = datasets.load_dataset(
                self.source,
                self.config,
                split="train",
                streaming=True,
                revision=self.revision,
            )
            for row in rows:
                if row["text"].strip():
                    yield row["text"]
        except (OSError, ValueError, KeyError) as error:
            raise CasesError(f"cannot read corpus {self.name!r}: {error}") from error


@dataclass(frozen=True)
class GivenCorpus:
    """Documents in memory."""

    documents: tuple[str, ...]
    name: str = "given texts"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the documents; their boundaries matter."""
        return hashlib.sha256(json.dumps(self.documents).encode()).hexdigest()

    def __iter__(self) -> Iterator[str]:
        """Yield the documents in order, without the blank ones."""
        return (document for document in self.documents if document.strip())


def texts_given(texts: Iterable[str]) -> GivenCorpus:
    """A corpus of *texts*; raises `CasesError` if all of them are blank."""
    found = GivenCorpus(tuple(texts))
    if not any(found):
        raise CasesError("the given texts are blank; give a file's path, or strings with text")
    return found


def corpus_of(name: str | None, own: Path | None, *, download: bool = False) -> Any:
    """The corpus *name*: a world's text, a file, a folder, or wikitext or wikipedia.

    Without a name it is the model's *own* text, or None if it has none. Hub corpora need
    *download*. Raises `CasesError`.
    """
    if name is None:
        return FileCorpus(own.name, (own,)) if own else None
    known = worlds()
    if world := known.get(name):
        return FileCorpus(name, (world.text,))
    path = Path(name)
    if path.is_dir():
        files = tuple(sorted(p for p in path.rglob("*") if p.suffix in {".txt", ".jsonl"}))
        if not files:
            raise CasesError(f"folder {name!r} holds no .txt or .jsonl file; give another folder")
        return FileCorpus(name, files)
    if path.is_file():
        return FileCorpus(name, (path,))
    if name in HUB:
        if not download:
            raise CasesError(f"corpus {name!r} is on the hub; add --download to stream it")
        return HubCorpus(name, *HUB[name])
    raise CasesError(f"no corpus {name!r}; give a file, a folder or one of: {_names(known)}")


def _names(known: Iterable[str]) -> str:
    return ", ".join(sorted([*known, *HUB]))
