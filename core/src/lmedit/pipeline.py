"""The steps of an edit. Only this module calls the hooks. Read it after `hookspecs.py`.

    prepare (once per model, cached) -> compute = locate + compute -> applied (and reverted)

It checks the laws that can be checked during the work. Results have the right types, sites exist,
and deltas fit and are finite. The model does not change, and revert restores the weights (checked
by hash). It removes everything that a hook leaves on the model (hooks, gradients, modes). Hooks
that compute may use gradients, also if the caller has switched them off.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lmedit import defaults
from lmedit.errors import BrokenPluginError, RequestError, checks_kinds
from lmedit.guards.carried import check_carried
from lmedit.guards.hooks import implementations, implements
from lmedit.guards.results import ResultChecks
from lmedit.guards.untouched import check_types, left_alone, model_changed
from lmedit.models.undo import restored_after
from lmedit.preparation import (
    chosen_options,
    find_prepared,
    load_prepared,
    prepared_path,
    save_prepared,
)
from lmedit.registry import check_joins, check_subject
from lmedit.replay import ways_of
from lmedit.storage.digests import digest_tensors
from lmedit.storage.installed import load_play
from lmedit.storage.tensors import Checkpoint
from lmedit.types import Applied, Carried, Location, Prepared, Probed, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Material, Request, Work


@dataclass(frozen=True)
class Editor:
    """A method set up for one model, with resolved options and a loaded preparation."""

    loaded: LoadedMethod
    lm: Lm
    options: Options
    prepared: Prepared
    number_types: tuple[torch.dtype, ...] = field(init=False, repr=False)
    """The number types of the model's parameters when the editor was made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "number_types", self.lm.number_types)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides its edits, besides model and name: JSON values for keys."""
        return {
            "version": self.loaded.version,
            "code": self.loaded.code,
            "options": self.options.model_dump(mode="json"),
            "prepared": digest_tensors(sorted(self.prepared.tensors.items())),
        }

    @property
    def name(self) -> str:
        """The method's name."""
        return self.loaded.name

    @property
    def prepare_seconds(self) -> float | None:
        """How long the preparation took when it was made; None if the method needs none."""
        return self.prepared.facts.get("seconds")

    def locate(self, request: Request) -> Location:
        """The parameters that *request* would change, and the evidence for them."""
        (request,) = self._formulate([request])
        with self._working():
            return self._locate(request.model_copy(deep=True))

    @property
    def _checks(self) -> ResultChecks:
        return ResultChecks(self.name, self.loaded.culprit, self.lm)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Enable gradients in the block, and check at its end that the model did not change."""
        check_types(self.name, self.lm, self.number_types)
        with (
            self.lm.evaluating(),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            left_alone(self.loaded.culprit, self.lm),
        ):
            yield

    @checks_kinds
    def _formulate(self, requests: Sequence[Request]) -> list[Request]:
        """*requests* as the model is asked: through its chat, and with their joints settled."""
        return [self.lm.formulate(request.model_copy(deep=True)) for request in requests]

    def _locate(self, request: Request) -> Location:
        """Call `edit_locate`. *request* is a copy, so the method cannot change its caller's."""
        check_subject(self.loaded, request)
        hook = self.loaded.manager.hook.edit_locate
        found = hook(lm=self.lm, request=request, options=self.options, prepared=self.prepared)
        return self._checks.location(found)

    def probe(self, request: Request, location: Location) -> Probed:
        """The measurements at *location*. Raises `RequestError` if the method has no probe."""
        (request,) = self._formulate([request])
        with self.lm.evaluating(), left_alone(self.loaded.culprit, self.lm):
            found = self.loaded.manager.hook.edit_probe(
                lm=self.lm,
                request=request,
                location=location,
                options=self.options,
                prepared=self.prepared,
            )
        if found is None:
            raise RequestError(f"{self.name} has nothing to probe; remove --probe")
        return self._checks.probe(found)

    def compute(self, request: Request) -> Update:
        """Locate, then compute the update for *request*. The model stays unchanged."""
        (request,) = self._formulate([request])
        with self._working():
            location = self._locate(request)
            update = self.loaded.manager.hook.edit_compute(
                lm=self.lm,
                request=request,
                location=location,
                options=self.options,
                prepared=self.prepared,
            )
        return self._checks.update(update, location, "edit_compute")

    @property
    def computes_many(self) -> bool:
        """Whether the method can compute several requests together."""
        return implements(self.loaded.manager, "edit_compute_many")

    @property
    def adds(self) -> bool:
        """Whether applying an update only adds its deltas, without hooks of the method's own."""
        found = implementations(self.loaded.manager, "edit_apply", "edit_revert")
        return all(each.plugin is defaults for each in found)

    def compute_many(self, requests: Sequence[Request]) -> list[Update]:
        """The update of each request, as if it were alone; computed together if the method can."""
        if not self.computes_many:
            return [self.compute(request) for request in requests]
        requests = self._formulate(requests)
        with self._working():
            locations = [self._locate(request) for request in requests]
            updates = self.loaded.manager.hook.edit_compute_many(
                lm=self.lm,
                requests=requests,
                locations=locations,
                options=self.options,
                prepared=self.prepared,
            )
        if not isinstance(updates, list | tuple) or len(updates) != len(requests):
            self._checks.refuse(f"edit_compute_many must return {len(requests)} updates")
        return [
            self._checks.update(update, location, "edit_compute_many")
            for update, location in zip(updates, locations, strict=True)
        ]

    @property
    def joins(self) -> bool:
        """Whether the method can compute one change for several requests."""
        return implements(self.loaded.manager, "edit_compute_joint")

    def carry_of(self, update: Update) -> Carried:
        """What *update* of this editor carries, with what it belongs to."""
        return Carried(update.carry, self.name, self.lm.digest, self.options.prepared_from())

    def compute_joint(self, requests: Sequence[Request], carried: Sequence[Carried] = ()) -> Update:
        """One change that answers all *requests*; the model stays unchanged.

        *carried* are those of this method's edits that are in the model, oldest first. Raises
        `RequestError` without requests or without a joint hook, and `ArtifactError` if one of
        *carried* belongs to another base, another method or other prepared options.
        """
        check_joins(self.loaded)
        if not requests:
            raise RequestError(f"{self.name}: there is no fact to edit; give at least one")
        for each in carried:
            check_carried(self.name, self.lm, self.options, each)
        requests = self._formulate(requests)
        with self._working():
            locations = [self._locate(request) for request in requests]
            update = self.loaded.manager.hook.edit_compute_joint(
                lm=self.lm,
                requests=requests,
                locations=locations,
                options=self.options,
                prepared=self.prepared,
                carried=[each.tensors for each in carried],
            )
        sites = dict.fromkeys(site for each in locations for site in each.sites)
        return self._checks.update(update, Location(tuple(sites)), "edit_compute_joint")

    def play(self, request: Request) -> Any:
        """*request* before and after its edit, as a notebook shows it; it needs lmedit-play."""
        return load_play().show(self, request)

    @checks_kinds
    @contextmanager
    def applied(self, update: Update) -> Iterator[Applied]:
        """Put *update* into the model during the block, then restore the weights to the bit.

        They are restored also after an error in the block. Raises `ModelChangedError` if the
        method's own hooks do not restore them.
        """
        with restored_after(self.lm, update.deltas) as block:
            before = self.lm.weights_digest(update.deltas)
            applied = self._apply(update, before)
            try:
                yield applied
            finally:
                if self.lm.open_blocks[-1:] == (block,):
                    self._revert(update, applied, before)

    def _apply(self, update: Update, before: str) -> Applied:
        """Call `edit_apply`; *before* is the digest of the parameters of *update*."""
        try:
            applied = self.loaded.manager.hook.edit_apply(lm=self.lm, update=update)
            self._checks.kind(applied, Applied, "edit_apply")
        except BrokenPluginError as error:
            if self.lm.weights_digest(update.deltas) != before:
                raise model_changed(
                    self.loaded.culprit, f"edit_apply failed half-way ({error})"
                ) from error
            raise
        return applied

    def _revert(self, update: Update, applied: Applied, before: str) -> None:
        """Call `edit_revert`, and check that the digest of the parameters is *before* again."""
        try:
            done = self.loaded.manager.hook.edit_revert(lm=self.lm, applied=applied)
        except BrokenPluginError as error:
            raise model_changed(self.loaded.culprit, f"edit_revert failed ({error})") from error
        if done is not True or self.lm.weights_digest(update.deltas) != before:
            raise model_changed(self.loaded.culprit, "edit_revert did not restore the weights")


@checks_kinds
@torch.enable_grad()
def prepare(
    loaded: LoadedMethod,
    lm: Lm,
    options: Options,
    corpus: Material | None,
    sweep: Sequence[Options] = (),
    place: Path | None = None,
) -> Editor:
    """Prepare *loaded* for *lm*, or load the stored preparation. Interrupted work continues.

    *sweep* holds all options that are prepared on *corpus* in this run. The method may compute
    them in the same pass. The preparation is in the file *place*; None: its place in the cache.
    """
    ways_of(lm)  # refuses a model whose edits nobody could judge
    if not _is_prepared(loaded, options):
        return Editor(loaded, lm, options, Prepared())
    path = prepared_path(loaded, lm, options, corpus)
    place = place or path
    if not place.is_file():
        checkpoint = Checkpoint(path.with_suffix(".checkpoint"))
        started = time.perf_counter()
        with left_alone(loaded.culprit, lm):
            prepared = call_prepare(loaded, lm, options, corpus, checkpoint, sweep)
        ResultChecks(loaded.name, loaded.culprit, lm).check_prepared(prepared)
        facts = {
            **prepared.facts,
            "seconds": time.perf_counter() - started,
            "corpus": corpus.name if corpus else None,
            "base": lm.name,
            "number type": lm.dtype_name,
            "options": chosen_options(options),
            "key": path.stem,
        }
        save_prepared(place, Prepared(prepared.tensors, facts), options.prepared_on(lm))
        checkpoint.clear()
    return Editor(loaded, lm, options, load_prepared(place, lm, options))


def _is_prepared(loaded: LoadedMethod, options: Options) -> bool:
    """Whether *loaded* is prepared for these *options*."""
    return loaded.method.prepares_on is not None and options.needs_preparation


def locates_unprepared(loaded: LoadedMethod, *, probe: bool) -> bool:
    """Whether `edit_locate`, and with *probe* `edit_probe`, take no preparation."""
    names = ("edit_locate", *(["edit_probe"] if probe else []))
    found = implementations(loaded.manager, *names)
    return not any("prepared" in each.argnames for each in found)


def call_prepare(
    loaded: LoadedMethod,
    lm: Lm,
    options: Options,
    corpus: Material | None,
    checkpoint: Checkpoint,
    sweep: Sequence[Options] = (),
) -> Prepared:
    """Call the method's `edit_prepare` and return its result, which is not checked or stored."""
    prepared: Prepared = loaded.manager.hook.edit_prepare(
        lm=lm, options=options, corpus=corpus, checkpoint=checkpoint, sweep=sweep, beside=sweep
    )
    return prepared


def ready(
    loaded: LoadedMethod, lm: Lm, options: Options, on: Material | None = None, *, own: bool = False
) -> Editor:
    """Load an existing preparation and return the editor. Nothing is prepared.

    `find_prepared` chooses the preparation; this function raises its errors.
    """
    ways_of(lm)
    if not _is_prepared(loaded, options):
        return Editor(loaded, lm, options, Prepared())
    return Editor(loaded, lm, options, find_prepared(loaded, lm, options, on, own=own))


def work_of(
    loaded: LoadedMethod, lm: Lm, options: Options, requests: int = 1
) -> Mapping[str, Work]:
    """Estimate `prepare` and one `edit` of *requests* requests; empty if the method gives none.

    *lm* may be an outline without weights.
    """
    found = loaded.manager.hook.edit_plan(lm=lm, options=options, requests=requests)
    return found if isinstance(found, Mapping) else {}
