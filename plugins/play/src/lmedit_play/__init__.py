"""The playground: `lmedit play` opens it in a browser, `Editor.play` shows it in a notebook.

It computes nothing itself. Its acts call the functions that the commands of lmedit call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit import Request
    from lmedit.pipeline import Editor
    from lmedit.plan import Plan
    from lmedit_play.notebook import Played


def serve(
    plan: Plan,
    tell: Callable[[str], object],
    *,
    host: str,
    port: int,
    token: str | None,
    opens: bool,
    left_out: Sequence[str] = (),
) -> None:
    """Load the model of *plan* and serve the page until the process ends; see `server.serve`."""
    from lmedit_play.access import Access
    from lmedit_play.server import serve as run

    run(plan, Access(host, port, token), tell, opens=opens, left_out=left_out)


def show(editor: Editor, request: Request) -> Played:
    """*request* before and after its edit, as a notebook shows it; see `notebook.show`."""
    from lmedit_play.notebook import show as make

    return make(editor, request)
