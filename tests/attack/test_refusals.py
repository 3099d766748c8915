"""What no patch can hold, or `apply` would refuse, is refused by `edit`, in one clear line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Dense, Lm, Location, LowRank, Method, Options, Request, Site, Update, hookimpl
from lmedit.actions.edit import edit_one
from lmedit.edits.ledger import Ledger
from lmedit.edits.patches import load_patch, save_patch
from lmedit.errors import ArtifactError, BrokenPluginError, LmeditError, RequestError
from lmedit.pipeline import Editor, prepare
from lmedit.registry import register
from lmedit.types import Prepared, Probed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[Site, torch.Tensor], Any]

FACT = Request(prompt="{} stands in", subject="The tower", target_new="the sea")


def deep(depth: int = 5000) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def of_dense(change: Callable[[torch.Tensor], Any]) -> Make:
    return lambda site, zeros: Update({site: Dense(change(zeros))})


def of_rank(rank: int) -> Make:
    return lambda site, zeros: Update(
        {site: LowRank(torch.zeros(len(zeros), rank), torch.zeros(rank, zeros.shape[1]))}
    )


def with_(**more: Any) -> Make:
    return lambda site, zeros: Update({site: Dense(zeros + 0.01)}, **more)


REFUSED: dict[str, Make] = {
    "int": of_dense(lambda zeros: zeros.int()),
    "bool": of_dense(lambda zeros: zeros.bool()),
    "complex": of_dense(lambda zeros: zeros.to(torch.complex64)),
    "float8": of_dense(lambda zeros: zeros.to(torch.float8_e4m3fn)),
    "sparse": of_dense(lambda zeros: zeros.to_sparse()),
    "compressed": of_dense(lambda zeros: zeros.to_sparse_csr()),
    "meta": of_dense(lambda zeros: zeros.to("meta")),
    "nested": of_dense(lambda zeros: torch.nested.nested_tensor([zeros, zeros])),
    "three dimensions": of_dense(lambda zeros: zeros[None]),
    "another shape": of_dense(lambda zeros: zeros[1:]),
    "no tensor": of_dense(lambda zeros: zeros.tolist()),
    "a generator": of_dense(lambda zeros: (row for row in zeros)),
    "infinite": of_dense(lambda zeros: zeros + torch.inf),
    "too large": of_dense(lambda zeros: zeros.double() + 1e300),
    "rank 20 000": of_rank(20_000),
    "two ranks": lambda site, zeros: Update({site: LowRank(zeros[:, :2], zeros[:3])}),
    "no delta": lambda site, _: Update({site: None}),  # type: ignore[dict-item]
    "deltas from a generator": lambda site, zeros: Update(
        (site, Dense(zeros))
        for _ in "a"  # type: ignore[arg-type]
    ),
    "a generator as update": lambda site, zeros: (each for each in [site, zeros]),
    "deep notes": with_(notes={"a": deep()}),
    "notes below the limit of Python": with_(notes={"a": deep(200)}),
    "notes of other kinds": with_(notes={"a": {1, 2}}),
    "notes from a generator": with_(notes=(pair for pair in [("a", 1)])),
    "notes with names of two kinds": with_(notes={"a": {1: 2, "b": 3}}),
    "a huge number in notes": with_(notes={"a": 10**400}),
    "a sparse carry": with_(carry={"a": torch.eye(3).to_sparse()}),
    "an int carry": with_(carry={"a": torch.ones(3).int()}),
    "a carry without values": with_(carry={"a": torch.ones(3, device="meta")}),
    "a carry with a name of signs": with_(carry={"a\x1b": torch.ones(3)}),
    "a carry from a generator": with_(carry=(each for each in "a")),
}


def editor_of(lm: Lm, make: Make) -> Editor:
    site = lm.mlp_out(0)

    def edit_describe() -> Method:
        return Method("toy", "no paper", Options)

    def edit_locate() -> Location:
        return Location((site, Site(site.parameter, transposed=not site.transposed)))

    def edit_compute() -> Any:
        return make(site, torch.zeros(lm.weight(site).shape))

    hooks = {f.__name__: hookimpl(f) for f in (edit_describe, edit_locate, edit_compute)}
    loaded = register(SimpleNamespace(**hooks), name=None, distribution="toy", version="1")
    return Editor(loaded, lm, loaded.method.options(), Prepared())


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested|strided):UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_edit_refuses_what_no_patch_can_hold(lm: Lm, tmp_path: Path, kind: str) -> None:
    method, base = editor_of(lm, REFUSED[kind]), lm.weights_digest()
    with pytest.raises((BrokenPluginError, RequestError), match="toy") as refused:
        edit_one(method, FACT, tmp_path / "a.safetensors", force=True)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    assert lm.weights_digest() == base


def test_an_edit_that_changes_nothing_is_not_written(lm: Lm, tmp_path: Path) -> None:
    method = editor_of(lm, lambda *_: Update({}))
    with pytest.raises(ArtifactError, match="changes nothing"):
        edit_one(method, FACT, tmp_path / "a.safetensors", force=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [
        with_(notes={"a": float("nan"), "b": "\ud800\x1b[31m", "c": deep(20), "d": 2**63}),
        with_(carry={"a": torch.ones(3).half(), "b": torch.ones(2, 2).t()}),
        of_dense(lambda zeros: zeros.expand_as(zeros).t().contiguous().t() + 0.01),
        of_dense(lambda zeros: torch.nn.Parameter(zeros + 0.01)),
        of_dense(lambda zeros: (zeros + 0.01).bfloat16()),
        of_dense(lambda zeros: (zeros + 0.01).double()),
        of_rank(1),
        of_rank(0),
    ],
)
def test_what_edit_writes_apply_takes(lm: Lm, tmp_path: Path, make: Make) -> None:
    found = edit_one(editor_of(lm, make), FACT, tmp_path / "a.safetensors", force=True)
    update, facts = load_patch(tmp_path / "a.safetensors")
    base = lm.weights_digest()
    ledger = Ledger(lm)
    ledger.take_out(ledger.keep(update, facts).id)
    assert (lm.weights_digest(), found["patch"]) == (base, str(tmp_path / "a.safetensors"))


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested|strided):UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_patch_that_cannot_be_read_is_not_written(lm: Lm, tmp_path: Path, kind: str) -> None:
    site = lm.mlp_out(0)
    update = REFUSED[kind](site, torch.zeros(lm.weight(site).shape))
    if not isinstance(update, Update):
        return
    path = tmp_path / "a.safetensors"
    try:
        save_patch(path, update, {})
    except (LmeditError, AttributeError, TypeError, StopIteration):
        assert not path.exists()
        return
    load_patch(path)


BAD_PREPARED: dict[str, Any] = {
    "deep facts": Prepared(facts={"a": deep()}),
    "facts of other kinds": Prepared(facts={"a": torch.ones(1)}),
    "a sparse tensor": Prepared({"a": torch.eye(3).to_sparse()}),
    "a tensor without values": Prepared({"a": torch.ones(3, device="meta")}),
    "no tensor": Prepared({"a": [1.0]}),  # type: ignore[dict-item]
    "a number as a name": Prepared({1: torch.ones(1)}),  # type: ignore[dict-item]
    "a generator": Prepared(each for each in "a"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", BAD_PREPARED)
def test_a_preparation_that_no_file_can_hold_is_refused(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path))

    class Needing(Options):
        pass

    def edit_describe() -> Method:
        return Method("toy", "no paper", Needing, prepares_on="text")

    hooks = {"edit_describe": edit_describe, "edit_prepare": lambda: BAD_PREPARED[kind]}
    hooks = {name: hookimpl(function) for name, function in hooks.items()}
    loaded = register(SimpleNamespace(**hooks), name=None, distribution="toy", version="1")
    with pytest.raises(BrokenPluginError, match="edit_prepare"):
        prepare(loaded, lm, loaded.method.options(), None)


@pytest.mark.parametrize("charts", ["ab", [1], (each for each in "a")])
def test_charts_of_other_kinds_are_refused(lm: Lm, charts: Any) -> None:
    method = editor_of(lm, with_())
    with pytest.raises(BrokenPluginError, match="charts"):
        method._checks.probe(Probed({}, charts))
    with pytest.raises(BrokenPluginError, match="charts"):
        method._checks.location(Location((), charts=charts))
