"""What several files of core tests share: a tiny model, and small plugin objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Dense, Lm, Location, Method, Options, Request, Update, hookimpl
from lmedit.models import installed_worlds
from lmedit.pipeline import Editor
from lmedit.registry import LoadedMethod, register
from lmedit.tiny import tiny_lm
from lmedit.types import Prepared, World

if TYPE_CHECKING:
    from collections.abc import Callable


class NudgeOptions(Options):
    layer: int = 0
    step: float = 0.1


@hookimpl
def edit_describe() -> Method:
    return Method("nudge", "no paper", NudgeOptions)


@hookimpl
def edit_locate(lm: Lm, options: NudgeOptions) -> Location:
    return Location((lm.mlp_out(options.layer),))


@hookimpl
def edit_compute(lm: Lm, location: Location, options: NudgeOptions) -> Update:
    (site,) = location.sites
    return Update({site: Dense(options.step * torch.ones_like(lm.weight(site)))})


def nudge_with(**hooks: Any) -> Any:
    """The nudge plugin, some of its hooks replaced; a hook given as None is left out."""
    own = {"edit_describe": edit_describe, "edit_locate": edit_locate, "edit_compute": edit_compute}
    chosen = {name: hook for name, hook in (own | hooks).items() if hook is not None}
    return SimpleNamespace(**{name: hookimpl(hook) for name, hook in chosen.items()})


@pytest.fixture
def lm() -> Lm:
    return tiny_lm()


@pytest.fixture
def request_() -> Request:
    return Request(
        prompt="{} stands in the city of",
        subject="The tower",
        target_new="the sea",
        target_true="the river",
    )


@pytest.fixture
def plugin() -> Callable[..., LoadedMethod]:
    """A loaded nudge plugin with some hooks replaced."""

    def make(name: str = "nudge", **hooks: Any) -> LoadedMethod:
        return register(nudge_with(**hooks), name=name, distribution="lmedit-toy", version="1.2")

    return make


@pytest.fixture
def editor(lm: Lm, plugin: Callable[..., LoadedMethod]) -> Callable[..., Editor]:
    """An editor of the nudge plugin for `lm`, with some hooks or options replaced."""

    def make(options: Options | None = None, **hooks: Any) -> Editor:
        return Editor(plugin(**hooks), lm, options or NudgeOptions(), Prepared())

    return make


@pytest.fixture
def install_world(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], World]:
    """A function that makes a world, named "toy", the only installed one."""

    def install(toy: World) -> World:
        point = SimpleNamespace(name="toy", load=lambda: toy)
        monkeypatch.setattr(
            installed_worlds, "entry_points", lambda group: [point] if group else []
        )
        return toy

    return install


@pytest.fixture
def told_to_say() -> Callable[[Lm, str], Lm]:
    """A function that makes a GPT-2 expect a text token by token, whatever it reads."""

    def tell(lm: Lm, text: str) -> Lm:
        logits = torch.zeros(len(lm.encode(text)), len(lm.tokenizer), dtype=torch.float64)
        for place, token in enumerate(lm.encode(text)[1:]):
            logits[place, token] = 9.0

        def only_the_place(hidden: torch.Tensor) -> torch.Tensor:
            places = torch.arange(hidden.shape[1], dtype=hidden.dtype)
            return places[:, None] + 0 * hidden  # gradients pass, as in every model

        lm.model.transformer.ln_f.forward = only_the_place

        def as_told(hidden: torch.Tensor) -> torch.Tensor:
            place = hidden[..., 0].long().clamp(max=len(logits) - 1)  # longer texts too
            return logits[place] + 0 * hidden[..., :1]

        lm.model.get_output_embeddings().forward = as_told
        return lm

    return tell
