"""An edit as a notebook shows it: the pieces of the page, without a server and without scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmedit.actions.edit import edit_one
from lmedit.actions.edit_text import edit_text
from lmedit.edits.ledger import Ledger, update_digest
from lmedit.edits.model_folders import EditedModel, read_patches
from lmedit_play import pieces
from lmedit_play.looking import Base, look_at_both

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit import Request, Update
    from lmedit.pipeline import Editor

STYLE = Path(__file__).parent / "static" / "page.css"


@dataclass(frozen=True, repr=False)
class Played:
    """A computed edit with the answers of both models; the model is as it was.

    Use ``lmedit.applied(lm, played.update)`` to put the edit into the model for a block.
    """

    update: Update
    digest: str
    """SHA-256 of the change, as `lmedit show` prints its beginning."""
    result: Mapping[str, Any]
    """The object of `lmedit edit --json`."""
    looks: Sequence[Mapping[str, Any]]
    tokens: tuple[Sequence[str], int, int]

    def __repr__(self) -> str:
        return f"<edit {self.digest[: pieces.SHORT]} by {self.result['method']}>"

    def __str__(self) -> str:
        return edit_text(dict(self.result))

    def _repr_html_(self) -> str:
        verdict = [line for line in str(self).splitlines() if line.startswith("verdict: ")]
        told = [*verdict, f"edit {self.digest[: pieces.SHORT]} by {self.result['method']}"]
        style = f"<style>{scope_style(STYLE.read_text(encoding='utf-8'))}</style>"
        body = pieces.chips(*self.tokens) + pieces.views(self.looks, told)
        return f'{style}<div class="lmedit-play">{body}</div>'


def scope_style(css: str) -> str:
    """*css* for the inside of our own element alone, so that it changes nothing of a notebook."""
    return f".lmedit-play {{ {css.replace(':root', '&')} }}"


def show(editor: Editor, request: Request) -> Played:
    """Compute the edit of *request*, and look at the model before and after, as `lmedit edit` does.

    An edit that did not take, or does harm, is shown too, with its verdict. Raises the errors of
    `lmedit edit`.
    """
    lm = editor.lm
    base = Base(lm)
    with TemporaryDirectory(prefix="lmedit-play-") as folder:
        patch = Path(folder) / "edit.safetensors"
        looking = base.looking(request)
        result = edit_one(editor, request, patch, force=True, looking=looking)
        model = EditedModel(lm, Ledger(lm), {"name": lm.name, "digest": lm.digest})
        ((update, _),) = read_patches(model, [patch])
    if request.subject is None:
        ids, start, end = lm.encode(request.text), 0, 0
    else:
        ids, start, end = lm.subject_span(request.prompt, request.subject)
    tokens = [lm.decode([i]) for i in ids]
    digest = update_digest(update)
    looks = look_at_both(base, base.prompts(request), {digest: update})
    told = {**result, "patch": None}
    return Played(update, digest, told, looks, (tokens, start, end))
