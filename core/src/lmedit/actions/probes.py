"""More prompts to ask before and after an edit: neighbours, and other facts of the subject.

They come from the user's file, from the model's world, or from the model itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmedit.actions.subjects import FUNCTION_WORDS
from lmedit.cases import load_cases
from lmedit.errors import CasesError
from lmedit.metrics.generate import greedy
from lmedit.metrics.locality import next_log_probabilities
from lmedit.models import worlds
from lmedit.storage.json_files import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmedit.models import Lm
    from lmedit.types import Case, Request

NEIGHBOURS = 2
"""How many neighbours are shown."""
LISTS = (
    "Here is a list of names of the same kind: {},",
    "Other examples like {} are",
    "{} and",
)
"""Prompts after which a model lists other subjects of the same kind as the one in ``{}``."""
LIST_TOKENS = 30
CANDIDATES = 16
"""How many names are tried as neighbours at most."""
CONFIDENT = 0.1
"""The smallest accepted probability of the top token after a prompt about another subject."""
ABOUT = ("{} is known for its", "{} is famous for the", "{} is a")
"""Prompts about a subject, for models without records."""
ASKED = ("For which thing is {} known?", "Which sort of thing is {}?", "Where is {}?")
"""The same as questions of a chat."""
_OPENERS = "however some other others many most examples example note yes both these list"
OPENERS = frozenset(_OPENERS.split())
"""Words that begin sentences with a capital and are not names."""
_WORD = r"(?:(?:St|[A-Z])\.|[A-Z\u00c0-\u00de][\w'\u2019-]*)"
NAME = re.compile(rf"{_WORD}(?:[ -](?:of |the |de |la )*{_WORD})*")
"""A sequence of capitalised words."""


@dataclass(frozen=True)
class Probes:
    """Prompts to look at before and after an edit, by kind, and notes for the user."""

    prompts: Mapping[str, str]
    remarks: tuple[str, ...] = field(default=())


def probes_of(lm: Lm, request: Request, near: str | None = None) -> Probes:
    """A paraphrase, two neighbours and another fact of the subject, if they are found.

    *near* is a file of cases in any layout of `load_cases`, or of prompts, one per line. Without
    it, they come from the model's world; without a world, from the model itself. Raises
    `CasesError` if *near* cannot be read. The prompts are bare, also in a chat.
    """
    if near is not None and (prompts := plain_prompts(near)):
        named = _number_kinds({"neighbour": prompts[:NEIGHBOURS]})
    elif near is not None:
        named = from_cases(load_cases(near).good, request)
    elif lm.world in worlds():
        named = from_cases(load_cases(lm.world).good, request)
    else:
        named = {}
    if not any(kind.startswith("neighbour") for kind in named):
        named |= _number_kinds({"neighbour": own_neighbours(lm, request)})
    if "another fact" not in named:
        named |= _number_kinds({"another fact": other_facts(lm, request)})
    lacking = [kind for kind in ("neighbour", "another fact") if kind not in named]
    remarks = [_lack(kind, request) for kind in lacking]
    return Probes(named, tuple(remarks))


def check_near(near: str) -> None:
    """Raise `CasesError` if *near* cannot be read; no model is needed."""
    if not plain_prompts(near):
        load_cases(near)


def ask_through_chat(lm: Lm, prompt: str) -> str:
    """*prompt* as *lm* is asked: in a chat, as the user's message."""
    return lm.chat.wrap(prompt) if lm.chat else prompt


def _lack(kind: str, request: Request) -> str:
    """The reason why no probe of *kind* is shown, and the remedy."""
    why = "the model names nothing that it answers with confidence"
    if request.subject is None:
        why = "the fact names no subject"
    what = "neighbour" if kind == "neighbour" else "other fact of the subject"
    return f"no {what} is shown: {why}; give --near FILE"


def _number_kinds(found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The prompts by kind; a second prompt of a kind gets a number."""
    return {
        kind if i == 0 else f"{kind} {i + 1}": prompt
        for kind, prompts in found.items()
        for i, prompt in enumerate(prompts)
    }


def from_cases(cases: Sequence[Case], request: Request, most: int = NEIGHBOURS) -> dict[str, str]:
    """The prompts of *cases* that are paraphrases, neighbours, or about the same subject.

    There are *most* neighbours at most.
    """
    own = [c for c in cases if request.subject is not None and c.request.subject == request.subject]
    same = [c for c in own if _asks(c, request)]
    alike = same or [c for c in cases if c.request.prompt == request.prompt]
    neighbours = [
        *_without(request, (p for c in alike for p in c.neighbours)),
        *_without(request, (c.request.text for c in alike)),
    ]
    others = [p.prompt for c in same for p in c.relations]
    others += [c.request.text for c in own if c not in same]
    paraphrases = [p for c in same for p in c.paraphrases]
    return _number_kinds(
        {
            "paraphrase": paraphrases[:1],
            "neighbour": list(dict.fromkeys(neighbours))[:most],
            "another fact": [text for text in others if text != request.text][:1],
        }
    )


def _asks(case: Case, request: Request) -> bool:
    """Whether *case* asks the same as *request*, in the same words or in a paraphrase."""
    return case.request.prompt == request.prompt or any(
        text.endswith(request.text) for text in case.paraphrases
    )


def _without(request: Request, prompts: Iterable[str]) -> list[str]:
    """The *prompts* that are not about the subject of *request*."""
    name = request.subject or request.text
    return [prompt for prompt in prompts if name not in prompt]


def plain_prompts(near: str) -> list[str]:
    """The prompts of a text file, one per line, or of a JSON list of texts; else an empty list."""
    path = Path(near)
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CasesError(f"cannot read {near}: {error}; give prompts or cases") from error
    if not text.lstrip().startswith(("{", "[")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        listed = parse_json(text)
    except ValueError:
        return []
    texts = listed if isinstance(listed, list) else []
    return texts if all(isinstance(each, str) for each in texts) else []


def own_neighbours(lm: Lm, request: Request, most: int = NEIGHBOURS) -> list[str]:
    """The request's prompt with other names, which *lm* itself lists together with the subject.

    There are *most* prompts at most. Names are sequences of capitalised words in greedy lists. A
    prompt is kept if the model's top token has at least the probability `CONFIDENT` and does not
    begin the new answer. The order is that of the lists.
    """
    if request.subject is None:
        return []
    lists = [text.replace("{}", request.subject) for text in LISTS]
    names = _names(greedy(lm, lists, LIST_TOKENS), request)
    prompts = [request.prompt.replace("{}", name) for name in names]
    kept = _keep_confident(lm, prompts, request)
    return sorted(kept, key=lambda prompt: kept[prompt].empty)[:most]


def _names(texts: Sequence[str], request: Request) -> list[str]:
    """The names in *texts* that share no word with the subject and the new answer."""
    taken = _words(f"{request.subject} {request.target_new}")
    found = dict.fromkeys(name.rstrip(".-'") for text in texts for name in NAME.findall(text))
    named = [(name, _words(name)) for name in found if len(name) > 2]
    return [name for name, words in named if words and not words & taken][:CANDIDATES]


def _words(text: str) -> set[str]:
    """The words of *text* in lower case that can be part of a name."""
    return set(re.findall(r"\w+", text.casefold())) - FUNCTION_WORDS - OPENERS


def other_facts(lm: Lm, request: Request) -> list[str]:
    """The prompt of `ABOUT` about the subject that *lm* answers with most confidence.

    Prompts that continue with a function word, such as "the", come last.
    """
    if request.subject is None:
        return []
    prompts = [text.replace("{}", request.subject) for text in (ASKED if lm.chat else ABOUT)]
    others = [prompt for prompt in prompts if prompt != request.text]
    kept = _keep_confident(lm, others, request)
    return sorted(kept, key=lambda prompt: (kept[prompt].empty, -kept[prompt].p))[:1]


@dataclass(frozen=True)
class _Answer:
    """The top token after a prompt: its probability, and whether it is a function word."""

    p: float
    empty: bool


def _keep_confident(lm: Lm, prompts: Sequence[str], request: Request) -> dict[str, _Answer]:
    """The *prompts* whose top token is confident and is not the first token of the new answer."""
    if not prompts:
        return {}
    best = (
        next_log_probabilities(lm, [ask_through_chat(lm, prompt) for prompt in prompts])
        .exp()
        .max(dim=-1)
    )
    new = lm.with_target(ask_through_chat(lm, request.text), request.target_new)[1][0]
    kept = {}
    for prompt, p, token in zip(prompts, best.values, best.indices, strict=True):
        if float(p) >= CONFIDENT and int(token) != new:
            word = lm.decode([int(token)]).strip().casefold()
            kept[prompt] = _Answer(float(p), not word or word in FUNCTION_WORDS)
    return kept
