"""Targets that were found are remembered: the search depends on few of a method's options.

A group of facts that share their passes is the unit of the search. So its targets are the same to
the bit, found or remembered. MEMIT, EMMET and AlphaEdit share them, and so do edits of the first 10
and of the first 100 facts.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lmedit.storage.steps import tell_spared
from lmedit_memit.options import JointOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit import Lm, Request
    from lmedit_memit.rounds import Seen
    from lmedit_memit.targets import Targets

    Key = tuple[object, ...]

MOST_BYTES = 2**26
"""The targets of a model that are remembered; the oldest are dropped."""
OF_CONTEXTS = frozenset(
    {"seed", "prefixes", "prefix_start", "prefix_join", "include_bare", "length_counts_start"}
)
"""Options that decide the templates; the templates are part of the key."""
OF_STATISTICS = frozenset({"samples", "sample_unit", "max_length", "tolerance"})
NOT_OF_SEARCH = OF_CONTEXTS | OF_STATISTICS | {"expert", "remember"}
"""The shared options on which the search does not depend. All others are part of the key."""


def recall(
    lm: Lm,
    requests: Sequence[Request],
    templates: Sequence[str],
    options: JointOptions,
    seen: Seen,
    search: Callable[[], Targets],
) -> Targets:
    """The remembered targets of the group *requests*; else those of ``search()``.

    A remembered search tells its seconds (`lmedit.storage.steps.tell_spared`). Nothing is
    remembered of a model with hooks: they can change what it computes, and its weights do not tell.
    """
    if _is_hooked(lm):
        return search()
    known = _KNOWN.setdefault(lm, OrderedDict())
    key = _key_of(lm, requests, templates, options, seen)
    if key in known:
        known.move_to_end(key)
        found, seconds = known[key]
        tell_spared(seconds)
        return found
    started = time.perf_counter()
    found = search()
    known[key] = found, time.perf_counter() - started
    while sum(each.Z.nbytes for each, _ in known.values()) > MOST_BYTES:
        known.popitem(last=False)
    return found


def forget(lm: Lm) -> None:
    """Forget the targets of *lm*, to measure the time of a search."""
    _KNOWN.pop(lm, None)


_KNOWN: WeakKeyDictionary[Lm, OrderedDict[Key, tuple[Targets, float]]] = WeakKeyDictionary()


def _key_of(
    lm: Lm,
    requests: Sequence[Request],
    templates: Sequence[str],
    options: JointOptions,
    seen: Seen,
) -> Key:
    """Everything on which the targets of the group depend."""
    fields = sorted(JointOptions.model_fields.keys() - NOT_OF_SEARCH)
    facts = tuple(request.model_dump_json() for request in requests)
    return (
        lm.state(),
        facts,
        tuple(templates),
        seen,
        *((name, getattr(options, name)) for name in fields),
    )


def _is_hooked(lm: Lm) -> bool:
    """Whether a module of *lm* does more than its own code, for example under `as_if`."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in lm.model.modules()
    )
