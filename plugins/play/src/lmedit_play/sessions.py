"""What each tab of a browser holds: its fact, its texts and its edits. No tab sees another's."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmedit.edits.ledger import applied, sum_of
from lmedit.errors import LedgerError, RequestError
from lmedit.replay.unmerged import UnmergedEdits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmedit import Lm, Request, Update

MOST = 32
"""How many sessions the server keeps; the one that was silent longest is forgotten first."""
NAME = re.compile(r"[0-9a-f-]{16,64}")


@dataclass
class KeptEdit:
    """An edit of a session: its digest, its change, its patch file, and whether it is switched on.

    `result` is the object of `lmedit edit --json`; None for a patch that the user brought.
    """

    id: str
    update: Update
    facts: Mapping[str, Any]
    patch: Path
    result: Mapping[str, Any] | None = None
    typed: Mapping[str, str] = field(default_factory=dict)
    """The options of the method as the user typed them."""
    files: Sequence[str] = ()
    """The plugin file of the method, if it came from one."""
    on: bool = True

    @property
    def request(self) -> Mapping[str, Any]:
        """The fact of the edit, or the first of its facts; empty if the patch names none."""
        several = self.facts.get("requests") or [{}]
        return dict(self.facts.get("request") or several[0])


class Session:
    """One tab: its edits, the oldest first, and a folder for its files."""

    def __init__(self) -> None:
        self._own = TemporaryDirectory(prefix="lmedit-play-")
        self.folder = Path(self._own.name)
        self.edits: list[KeptEdit] = []
        self.request: Request | None = None
        self.texts: list[str] = []
        """The user's own prompts."""
        self.files: dict[str, Path] = {}
        """Files to take away, by an unguessable name."""
        self.html: dict[str, str] = {}
        """The pieces of the page as they were last, for a reload."""

    @property
    def on(self) -> dict[str, Update]:
        """The changes that are switched on, by their digests."""
        return {each.id: each.update for each in self.edits if each.on}

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Undo what the block changes in this session if it fails or is stopped."""
        request, texts, html = self.request, [*self.texts], dict(self.html)
        edits, on = [*self.edits], [each.on for each in self.edits]
        try:
            yield
        except BaseException:
            self.request, self.texts, self.html, self.edits = request, texts, html, edits
            for each, was in zip(edits, on, strict=True):
                each.on = was
            raise

    def keep(self, edit: KeptEdit) -> None:
        """Add *edit*. Raises `LedgerError` if it is there already, as for a model folder."""
        if any(each.id == edit.id for each in self.edits):
            raise LedgerError(f"edit {edit.id[:12]} is already in the model")
        self.edits.append(edit)

    def find(self, digest: str) -> KeptEdit:
        """The edit with this digest. Raises `RequestError`."""
        for each in self.edits:
            if each.id == digest:
                return each
        raise RequestError(f"no edit {digest[:12]!r} in this tab; load the page again")

    def place(self, name: str) -> Path:
        """A new path for a file with this *name*."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir()
        return folder / name

    def shorten(self, text: str) -> str:
        """*text* with the names of our files instead of their paths."""
        return re.sub(rf"{re.escape(str(self.folder))}/[0-9a-f]{{8}}/", "", text)

    def offer(self, path: Path) -> str:
        """The address under which the page takes *path*."""
        key = secrets.token_urlsafe(16)
        self.files[key] = path
        return f"file/{key}"

    def close(self) -> None:
        """Delete the files."""
        self._own.cleanup()


class Sessions:
    """The sessions of all tabs."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Session] = OrderedDict()

    def of(self, name: str) -> Session:
        """The session *name*, which a tab has drawn for itself. Raises `RequestError`."""
        if not NAME.fullmatch(name):
            raise RequestError("the page names no session; load it again")
        if name not in self._known:
            self._known[name] = Session()
            if len(self._known) > MOST:
                self._known.popitem(last=False)[1].close()
        self._known.move_to_end(name)
        return self._known[name]

    def file(self, key: str) -> Path | None:
        """The file that a session offers under *key*."""
        return next((s.files[key] for s in self._known.values() if key in s.files), None)

    def close(self) -> None:
        """Delete the files of all sessions."""
        for each in self._known.values():
            each.close()


@contextmanager
def seen_with(lm: Lm, updates: Sequence[Update]) -> Iterator[UnmergedEdits | None]:
    """Read *lm* with *updates* in the block: beside the weights, as one edit.

    In half precision, rounding is a part of an edit. Then the edits are in the weights for the
    time of the block, and the block gets None, as without any edit.
    """
    if not updates:
        yield None
        return
    one = updates[0] if len(updates) == 1 else sum_of(updates)
    if UnmergedEdits.fits(lm, one):
        yield UnmergedEdits(lm, [one])
        return
    with ExitStack() as stack:
        for update in updates:
            stack.enter_context(applied(lm, update))
        yield None
