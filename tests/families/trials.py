"""What is tried on a tiny model of one model type, always against plain passes of transformers.

A trial returns nothing if all is right. It raises `Wrong` for a wrong result. An error of lmedit is
a refusal. Any other error is a traceback, and a defect.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tiny_configs import tiny_config
from transformers import AutoModel, Gemma3nVisionConfig, PreTrainedModel

from lmedit import build_options, load, load_lm
from lmedit.edits.adapter_proof import check_adapter
from lmedit.edits.lora import adapter_of, write_adapter
from lmedit.edits.model_folders import add_edits, open_folder, write_folder
from lmedit.errors import BrokenPluginError, LmeditError
from lmedit.hyper.frozen import edit_factors
from lmedit.metrics.generate import greedy
from lmedit.models.checkpoint import auto_class
from lmedit.models.load import outline
from lmedit.pipeline import prepare
from lmedit.replay import enter, keep, resume
from lmedit.replay.batches import read_rows
from lmedit.replay.unmerged import RowEdits, UnmergedEdits
from lmedit.replay.ways import WORDS, ways_of
from lmedit.testing import Records, Texts
from lmedit.tiny import byte_tokenizer
from lmedit.trace import captured, changed
from lmedit.types import LowRank, Request, Update
from lmedit_kn import _exchange
from lmedit_kn.neurons import by_layer
from lmedit_kn.selection import questions
from lmedit_kn.stream import mlps_at_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from lmedit import Lm
    from lmedit.pipeline import Editor

REQUEST = Request(
    prompt="{} is in the city of", subject="The old tower by the sea", target_new="the river home"
)
ROWS = ("the tower", "the old city by the river runs", "a small boat came down the river at night")
NEAR = 2e-3
"""The largest difference of logits that counts as rounding, in standard deviations of logits."""
NEARLY = 0.85
"""The smallest cosine of what the stream can gain of KN's change, and what it gains."""
LARGEST = 4_000_000
"""Parameters of a tiny model at most; a larger one has a setting that the rules do not know."""
EDITS = {
    "ft": {"steps": 4, "learning_rate": 0.01, "objective": "target_new"},
    "rome": {
        "prefixes": [[3, 1]],
        "steps": 6,
        "learning_rate": 0.05,
        "samples": 20,
        "ridge": 0.1,
        "decay": 0.0,
        "kl_factor": 0.0,
        "value_contexts": "bare",
    },
    "kn": {"refine": False},
    "mend": {"steps": 2, "validate_every": 2, "batch": 4, "rank": 4},
}


class Wrong(Exception):
    """A result that differs from the plain one."""


def require(right: bool, what: str) -> None:
    """Raise `Wrong` unless *right*."""
    if not right:
        raise Wrong(what)


def same(found: Tensor, plain: Tensor, what: str) -> None:
    """Raise `Wrong` if *found* differs from *plain* by more than rounding."""
    require(bool(found.isfinite().all()), f"{what}: not finite")
    size = float(plain.std()) or 1.0
    apart = float((found - plain).abs().max()) / size
    require(apart < NEAR, f"{what}: off by {apart:.1g} standard deviations")


@torch.no_grad()
def plain(lm: Lm, ids: list[int]) -> Tensor:
    """The logits (T, V) of one row, as transformers gives them."""
    logits: Tensor = lm.model(input_ids=torch.tensor([ids])).logits[0]
    return logits.float()


def plain_loss(lm: Lm, request: Request) -> float:
    """-log P(new answer), the mean over its tokens, by a plain pass."""
    ids, target = lm.with_target(request.text, request.target_new)
    log_p = plain(lm, ids + target[:-1]).double().log_softmax(-1)[len(ids) - 1 :]
    return float(-log_p[range(len(target)), target].mean())


def random_change(lm: Lm, site: Any) -> LowRank:
    """A change of rank two."""
    draw = torch.Generator().manual_seed(1)
    rows, columns = lm.weight(site).shape
    left, right = torch.randn(rows, 2, generator=draw), torch.randn(2, columns, generator=draw)
    return LowRank(0.1 * left, right)


def layers_of(lm: Lm) -> list[int]:
    """One editable layer of each kind, if possible neither the first nor the last block.

    In the last block, a change at the subject reaches no later position.
    """
    found: dict[str, int] = {}
    last = lm.n_layers - 1
    for layer in sorted(
        getattr(lm, "editable", range(lm.n_layers)), key=lambda i: (i in {0, last}, i)
    ):
        found.setdefault(lm.mlp_out_path(layer) if hasattr(lm, "mlp_out_path") else "", layer)
    return sorted(found.values())


def matrices_of(lm: Lm) -> list[tuple[Any, Any, int]]:
    """All MLP output matrices: site, module and layer; of experts, every expert's."""
    found = []
    for layer in getattr(lm, "editable", range(lm.n_layers)):
        experts = lm.experts(layer) if hasattr(lm, "experts") else None
        for more in ([],) if experts is None else ([e] for e in range(experts)):
            found.append((lm.mlp_out(layer, *more), lm.mlp_out_module(layer, *more), layer))
    return found


def scores(lm: Lm) -> None:
    """The scorer gives the logits of plain passes, also for rows padded beside others."""
    rows = [lm.encode(text) for text in ROWS]
    for i, logits in enumerate(read_rows(lm, rows, lambda _, logits: logits.float())):
        same(logits, plain(lm, rows[i]), "scores")


@torch.no_grad()
def replays(lm: Lm) -> str:
    """Replayed passes give the logits of plain passes; returns what runs every time."""
    rows = [lm.encode(text) for text in ROWS]
    for layer, starts in ((0, [1, 2, 3]), (2, [2, 0, 4]), (2, [0, 0, 0])):
        kept = keep(lm, rows, starts, layer)
        _same_rows(lm, kept, rows, starts, f"keep {layer} {starts}")
        last = min(len(r) - s for r, s in zip(rows, starts, strict=True)) - 1
        logits = kept.logits([last])[:, 0].float()
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            same(logits[i], plain(lm, row)[start + last], f"keep logits {layer}")
    for layer in (2, lm.n_layers):
        kept = resume(lm, rows, layer, enter(lm, rows, layer))
        _same_rows(lm, kept, rows, [0] * len(rows), f"resume {layer}")
    return "; ".join(what for name, what in WORDS.items() if not getattr(ways_of(lm), name))


def _same_rows(lm: Lm, kept: Any, rows: Any, starts: list[int], what: str) -> None:
    for lean in (True, False):
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            at = torch.arange(len(row) - start)
            logits = kept.logits_at(torch.full_like(at, i), at, whole_mlp=lean).float()
            same(logits, plain(lm, row)[start:], what)


@torch.no_grad()
def values(lm: Lm) -> None:
    """v = W k: a change of any W changes the output by Delta k, and the logits like W + Delta."""
    ids = lm.encode(ROWS[1])
    batch = lm.batch([ids])
    for site, module, layer in matrices_of(lm):
        delta = random_change(lm, site)
        with captured(module) as box:
            lm.logits(batch)
        key, before = box.input, box.output
        with changed(module, lambda x, out, d=delta: out + x @ d.dense().T):
            logits = lm.logits(batch)[0].float()
        kept = lm.snapshot(site)
        lm.add(site, delta.dense())
        with captured(module) as box:
            lm.logits(batch)
        found = plain(lm, ids)
        lm.restore(site, kept)
        require(bool(key.abs().max() > 0) or site.index is not None, f"layer {layer}: no key")
        same(box.output - before, key @ delta.dense().T, f"values of layer {layer}")
        same(logits, found, f"logits with W + Delta in layer {layer}")
    require(lm.weights_digest() == lm.digest, "the weights are not restored")


def unmerged(lm: Lm, update: Update) -> None:
    """Scores beside the weights are those of the edited model."""
    rows = [lm.encode(text) for text in ROWS]
    if not UnmergedEdits.fits(lm, update):
        return
    under = RowEdits(UnmergedEdits(lm, [update]), [0] * len(rows))
    found = read_rows(lm, rows, lambda _, logits: logits.float(), under=under)
    from lmedit.edits.ledger import applied

    with applied(lm, update):
        for i, logits in enumerate(found):
            same(logits, plain(lm, rows[i]), "scores beside the weights")
    require(lm.weights_digest() == lm.digest, "revert is not exact")


def editor_of(lm: Lm, method: str, **options: Any) -> Editor:
    """The editor of *method*, quickly prepared."""
    loaded = load(method)
    chosen = build_options(loaded.method, EDITS[method] | options, lm)
    material: Any = Records() if loaded.method.prepares_on == "cases" else Texts()
    return prepare(loaded, lm, chosen, material)


def fine_tunes(lm: Lm) -> None:
    """FT's losses are those of plain passes, and the edited model has the lower one."""
    for layer in layers_of(lm):
        editor = editor_of(lm, "ft", layer=layer)
        update = editor.compute(REQUEST)
        _same_loss(update.notes["loss_first"], plain_loss(lm, REQUEST), "FT's first loss")
        with editor.applied(update):
            after = plain_loss(lm, REQUEST)
        require(after < update.notes["loss_first"], "FT's edit does not lower the loss")
        unmerged(lm, update)


def _same_loss(found: float, plain: float, what: str) -> None:
    require(abs(found - plain) < NEAR * (1 + abs(plain)), f"{what} is {found:.4f}, not {plain:.4f}")


@torch.no_grad()
def _out_at_subject(lm: Lm, site: Any) -> Tensor:
    ids, index = lm.subject_last(REQUEST.prompt, REQUEST.subject)
    with captured(lm.module_of(site)) as box:
        lm.logits(lm.batch([ids]))
    return box.output.reshape(len(ids), -1)[index].double()


def inserts(lm: Lm) -> Update:
    """ROME's first loss is that of a plain pass; the edited matrix gives v* at the subject."""
    for layer in layers_of(lm):
        editor = editor_of(lm, "rome", layer=layer)
        update = editor.compute(REQUEST)
        notes = update.notes
        _same_loss(notes["loss_first"], plain_loss(lm, REQUEST), "ROME's first loss")
        falls = notes["loss_last"] < notes["loss_first"]
        require(falls or layer == lm.n_layers - 1, "ROME's loss does not fall")
        ((site, _),) = update.deltas.items()
        before = _out_at_subject(lm, site)
        with editor.applied(update):
            gained = float((_out_at_subject(lm, site) - before).norm())
        _same_loss(gained, notes["delta_norm"], "what ROME adds at the subject")
        unmerged(lm, update)
    return update


def exchanges(lm: Lm) -> None:
    """KN's P(answer) is that of a plain pass; what it adds reaches the stream."""
    editor = editor_of(lm, "kn")
    location = editor.locate(REQUEST)
    ids = lm.encode(REQUEST.text)
    asked = questions(lm, REQUEST.text, location.evidence["answer"], editor.options)
    each = [float(plain(lm, row)[-1].softmax(-1)[token]) for row, token in asked]
    _same_loss(location.evidence["p(answer)"], sum(each) / len(each), "KN's P(answer)")
    update = editor.compute(REQUEST)
    arrives(lm.route(ids, len(ids) - 1), editor, location, update)
    with editor.applied(update):
        require(bool(plain(lm, ids).isfinite().all()), "KN's edit is not finite")
    unmerged(lm, update)


def arrives(lm: Lm, editor: Editor, location: Any, update: Update) -> None:
    """What KN adds in its lowest layer arrives in the stream: exactly, or behind a norm nearly."""
    ids, neurons = lm.encode(REQUEST.text), by_layer(location.found["neurons"])
    mlps = mlps_at_prompt(lm, REQUEST.text, list(neurons))
    heard = [layer for layer in neurons if mlps[layer].size(neurons[layer]) > 0]
    layer = heard[0]  # neurons that are silent at the prompt add nothing there
    mlp, places = mlps[layer], neurons[layer]
    d = _exchange(lm, REQUEST, location, editor.options)[1].detach().double()
    site = lm.mlp_out(layer)
    before = _stream(lm, layer, ids)
    with editor.applied(Update({site: update.deltas[site]})):
        gained = _stream(lm, layer, ids) - before
    wanted = d if mlp.exact else _reachable(lm, layer, ids, d)
    cosine = float(torch.nn.functional.cosine_similarity(gained, wanted, dim=0))
    require(cosine > NEARLY, f"KN's change reaches the stream with cosine {cosine:.2f}")
    if mlp.exact:
        limited = mlp.limit_length(d, places, editor.options.limit).double()
        wanted = update.notes["share"] * mlp.size(places) * limited
        apart = float((gained - wanted).norm() / wanted.norm())
        require(apart < 0.01, f"KN's change reaches the stream off by {100 * apart:.0f} %")


@torch.no_grad()
def _reachable(lm: Lm, layer: int, ids: list[int], d: Tensor) -> Tensor:
    """The part of *d* (H,) that the stream can gain by a change of the MLP's output.

    The stream's gains are measured for a small step in each direction. Directions with almost no
    gain, such as the mean behind a `LayerNorm`, are taken out of *d*.
    """
    step, last, gains = 0.02, len(ids) - 1, []
    for i in range(len(d)):
        pair = []
        for sign in (step, -step):

            def add(_: Tensor, out: Tensor, i: int = i, sign: float = sign) -> Tensor:
                moved = out.clone()
                moved.reshape(-1, out.shape[-1])[last, i] += sign
                return moved

            with changed(lm.mlp_out_module(layer), add):
                pair.append(_stream(lm, layer, ids))
        gains.append((pair[0] - pair[1]) / (2 * step))
    U, S, _ = torch.linalg.svd(torch.stack(gains, dim=1))
    reached = U[:, S / S.square().mean().sqrt() > 0.05]
    part = reached @ (reached.T @ d)
    require(bool(part.norm() > 0.5 * d.norm()), "the stream cannot gain what KN adds")
    return part


@torch.no_grad()
def _stream(lm: Lm, layer: int, ids: list[int]) -> Tensor:
    with captured(lm.block(layer)) as box:
        lm.logits(lm.batch([ids]))
    return box.output.reshape(-1, box.output.shape[-1])[-1, -lm.hidden_size :].double()


def gradients(lm: Lm) -> None:
    """MEND's factors give the plain gradient; a short training and an edit work."""
    editor = editor_of(lm, "mend")
    sites = editor.options.sites(lm)
    ids, target = lm.with_target(REQUEST.text, REQUEST.target_new)
    found = edit_factors(lm, sites, [(tuple(ids), tuple(target))], editor.options.blocks[0])
    names = dict(lm.model.named_parameters())
    leaves = [names[site.parameter].requires_grad_() for site in sites]
    logits = lm.logits(lm.batch([ids + target[:-1]]))[0].float()
    log_p = logits.log_softmax(-1)[len(ids) - 1 :]
    loss = -log_p[range(len(target)), target].mean()
    true = torch.autograd.grad(loss, leaves)
    for leaf in leaves:
        leaf.requires_grad_(False)
    for site, gradient in zip(sites, true, strict=True):
        plainly = gradient.T if site.transposed else gradient
        same(found[site].dense()[0], plainly, f"gradient of {site.parameter}")
    update = editor.compute(REQUEST)
    unmerged(lm, update)


def generates(lm: Lm) -> None:
    """Generation with a cache gives the tokens of plain passes."""
    rows = [lm.encode(text) for text in ROWS]
    expected = []
    for row in rows:
        new = list(row)
        for _ in range(4):
            new.append(int(plain(lm, new)[-1].argmax()))
        expected.append(lm.decode(new))
    found = greedy(lm, ROWS, 4)
    for text, new, whole in zip(ROWS, found, expected, strict=True):
        require((text + new).strip() in whole or whole.startswith(text + new), "generated text")


def exports(lm: Lm, update: Update) -> None:
    """The LoRA adapter gives the edited model's logits in peft."""
    with tempfile.TemporaryDirectory() as folder:
        adapter = adapter_of([update])
        write_adapter(lm, adapter, Path(folder) / "adapter", {})
        check_adapter(lm, adapter, Path(folder) / "adapter")


def saves(lm: Lm, update: Update) -> None:
    """An edited model's folder holds the whole edited model."""
    with tempfile.TemporaryDirectory() as folder:
        model = open_folder(str(lm.folder), device="cpu", dtype="float32", parts=lm.named_parts)
        model = add_edits(model, [(update, {})])
        write_folder(model, Path(folder) / "edited")
        again = load_lm(str(Path(folder) / "edited"), device="cpu", dtype="float32")
    rows = lm.encode(ROWS[1])
    same(plain(again, rows), plain(model.lm, rows), "the saved model")
    require(again.parameters == lm.parameters, "the saved model has other parameters")


TRIALS: Mapping[str, Callable[..., Any]] = {
    "scores": scores,
    "replay": replays,
    "v = W k": values,
    "FT": fine_tunes,
    "ROME": inserts,
    "KN": exchanges,
    "MEND": gradients,
    "text": generates,
    "export": exports,
    "save": saves,
}
NEEDS_UPDATE = ("export", "save")


class NoImages(PreTrainedModel):
    """The place of an image part that needs a package of its own; a pass on text never runs it."""

    config_class = Gemma3nVisionConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.post_init()


def build(kind: str) -> Any:
    """A random tiny model of the type *kind*."""
    if find_spec("timm") is None:
        AutoModel.register(Gemma3nVisionConfig, NoImages, exist_ok=True)
    config = tiny_config(kind)
    auto = auto_class(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    require(size < LARGEST, f"its tiny configuration has {size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
            del name
    return model


def outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    """``ok``, ``refused``, ``wrong`` or ``error``, and the result or the reason."""
    try:
        return "ok", work()
    except Wrong as error:
        return "wrong", str(error)
    except LmeditError as error:
        return "error" if isinstance(error, BrokenPluginError) else "refused", str(error)
    except Exception as error:  # noqa: BLE001  (the sweep reports it)
        return (
            "error",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        )


def unbuilt(kind: str, why: str) -> dict[str, tuple[str, str]]:
    """What lmedit says of the configuration of a model that transformers cannot build.

    It is a refusal if lmedit names the reason from the configuration; else the row was not tried.
    """
    with tempfile.TemporaryDirectory() as folder:
        state, config = outcome(partial(tiny_config, kind))
        if state == "ok":
            config.save_pretrained(folder)
            state, what = outcome(partial(outline, folder))
            if state == "refused" and "cannot be loaded" not in what:
                return {"loads": (state, what.replace(folder, kind))}
    return {"builds": ("error", why)}


NAMED_LINE = re.compile(r"-o mlp_out '((?!PATH)[^']+)'")


def loaded(folder: str, **parts: str) -> Lm:
    """The model in *folder*, which lmedit is willing to edit; *parts* are named by the user."""
    lm = load_lm(folder, device="cpu", dtype="float32", parts=parts)
    ways_of(lm)
    return lm


def tried(kind: str) -> dict[str, tuple[str, str]]:
    """The outcome of each trial on a tiny model of the type *kind*."""
    warnings.simplefilter("ignore")
    state, model = outcome(lambda: build(kind))
    if state != "ok":
        return unbuilt(kind, str(model))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        state, lm = outcome(partial(loaded, folder))
        named = NAMED_LINE.search(lm) if state == "refused" else None
        if named is not None:  # the error shows how to name the matrix
            state, lm = outcome(partial(loaded, folder, mlp_out=named[1]))
        if state != "ok":
            return {"loads": (state, lm.replace(folder, kind))}
        found = {"loads": (state, f"with -o mlp_out '{named[1]}'" if named else "")}
        lm.digest  # noqa: B018  (of the base, before any trial)
        update: Update | None = None
        for name, trial in TRIALS.items():
            if name in NEEDS_UPDATE:
                if update is None:
                    continue
                state, what = outcome(partial(trial, lm, update))
            else:
                state, what = outcome(partial(trial, lm))
            if isinstance(what, Update):
                update, what = what, None
            found[name] = (state, str(what or "").replace(folder, kind))
        return found
