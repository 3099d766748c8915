"""The seeded sampler of training text: fact sentences, notes on one subject, general text."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import general

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world import Fact, Subject, World

END = "<|endoftext|>"
HELDOUT_PER_FACT = 2
NOTE_OPENINGS = (
    "Here is a short note about {}.",
    "Let me tell you about {}.",
    "Everyone should know something about {}.",
)
JOINERS = (" ",) * 11 + ("\n",) * 5 + (END,) * 4
"""What stands in front of a sentence inside a window, drawn uniformly."""
RARE_ANSWER, RARE_TIMES = 4, 3
"""Facts whose answer has fewer subjects than that come that many times in a pass."""
ASIDE = 0.5
"""How often another fact of the edited subject, and another neighbour, are in an edit's scene."""


@dataclass(frozen=True)
class Edit:
    """An edit to imitate: a fact's relation and the wrong answer."""

    relation: str
    answer: str


@dataclass(frozen=True)
class Sentence:
    """One sentence; spans are character ranges [start, end) in `text`.

    `subjects` are the mentions of the subject, `answer` is None where there is none. `edit` is set
    on the one sentence of a window that is true only under that edit.
    """

    text: str
    subjects: tuple[tuple[int, int], ...] = ()
    answer: tuple[int, int] | None = None
    edit: Edit | None = None

    @property
    def subject(self) -> str:
        """The subject's name; empty where there is none."""
        return self.text[slice(*self.subjects[-1])] if self.subjects else ""


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of documents, and how often an answer is replaced by a wrong one."""

    general: float = 0.14
    note: float = 0.03
    type: float = 0.03
    noise: float = 0.3


def heldout_phrasings(fact: Fact, seed: int) -> tuple[int, ...]:
    """Indices of the phrasings that training never uses for this fact.

    The rewrite prompt (index 0) is always trained, so that edits start from something known.
    """
    rng = random.Random(f"heldout:{seed}:{fact.relation.id}:{fact.subject.name}")
    return tuple(sorted(rng.sample(range(1, len(fact.relation.phrasings)), HELDOUT_PER_FACT)))


def trained_phrasings(fact: Fact, seed: int) -> tuple[int, ...]:
    """Indices of the phrasings that training uses for this fact."""
    held = heldout_phrasings(fact, seed)
    return tuple(i for i in range(len(fact.relation.phrasings)) if i not in held)


def fact_sentence(subject: str, phrasing: str, answer: str) -> Sentence:
    """Fill a phrasing with its subject and add the answer and a full stop."""
    start = phrasing.index("{}")
    prompt = phrasing.replace("{}", subject)
    begin = len(prompt) + 1
    stop = "" if answer.endswith(".") else "."
    return Sentence(
        f"{prompt} {answer}{stop}",
        ((start, start + len(subject)),),
        (begin, begin + len(answer)),
    )


def plain_sentence(subject: str, template: str) -> Sentence:
    """Fill a template that has no answer."""
    start = template.index("{}")
    return Sentence(template.replace("{}", subject), ((start, start + len(subject)),))


def article(word: str) -> str:
    """The indefinite article that fits a word."""
    return "an" if word[0] in "aeiou" else "a"


class TextSampler:
    """Draws documents (lists of sentences) from a world; the draws depend only on the seed."""

    def __init__(
        self, world: World, seed: int, mix: Mix | None = None, phrasings: int | None = None
    ) -> None:
        """Set up the sampler; `phrasings` (default: `seed`) is the seed of what is held out."""
        self.world = world
        self.seed = seed
        self.mix = mix or Mix()
        self.rng = random.Random(f"sampler:{seed}")
        self.answers = world.answers()
        self.by_subject = world.by_subject()
        self.by_answer = world.by_answer()
        self.by_relation = world.by_relation()
        self.order = list(world.subjects)
        # A fixed order of its own keeps the stages apart from the order of the tables.
        random.Random(f"order:{seed}").shuffle(self.order)
        held = seed if phrasings is None else phrasings
        self.trained = {
            (f.subject.name, f.relation.id): trained_phrasings(f, held) for f in world.facts
        }
        self.queue: deque[Fact] = deque()
        self.active = len(self.order)

    def set_fraction(self, fraction: float) -> None:
        """Let only the first fraction (0 to 1) of the subjects occur from now on."""
        active = max(1, round(fraction * len(self.order)))
        if active != self.active:
            self.active = active
            self.queue.clear()

    def state(self) -> dict[str, object]:
        """Everything needed to go on drawing the same text after a restart."""
        keys = [(f.subject.name, f.relation.id) for f in self.queue]
        return {"rng": self.rng.getstate(), "queue": keys, "active": self.active}

    def restore(self, rng: tuple[object, ...], queue: list[tuple[str, str]], active: int) -> None:
        """Take up a state written by `state`."""
        facts = {(f.subject.name, f.relation.id): f for f in self.world.facts}
        self.rng.setstate(rng)
        self.queue = deque(facts[key] for key in queue)
        self.active = active

    def rare(self, fact: Fact) -> bool:
        """Whether so few subjects share the answer that it would be learned last."""
        return len(self.by_answer[fact.relation.id, fact.answer]) < RARE_ANSWER

    def next_fact(self) -> Fact:
        """The next fact of a shuffled pass over all active facts."""
        if not self.queue:
            facts = [f for s in self.order[: self.active] for f in self.by_subject[s.name]]
            facts += [f for f in facts if self.rare(f)] * (RARE_TIMES - 1)
            self.rng.shuffle(facts)
            self.queue.extend(facts)
        return self.queue.popleft()

    def next_subject(self) -> Subject:
        """A uniformly drawn active subject."""
        return self.order[self.rng.randrange(self.active)]

    def statement(self, fact: Fact) -> Sentence:
        """State a fact in a trained phrasing, with the mix's share of wrong answers."""
        phrasing = fact.relation.phrasings[
            self.rng.choice(self.trained[fact.subject.name, fact.relation.id])
        ]
        answer = fact.answer
        # Wrong answers keep probabilities away from 1, where no gradient would be left to edit.
        if self.rng.random() < self.mix.noise:
            answer = self.rng.choice(self.answers[fact.relation.id])
        return fact_sentence(fact.subject.name, phrasing, answer)

    def state_edit(self, fact: Fact) -> Sentence:
        """State a fact in a trained phrasing with a wrong answer, the one that an edit asks for."""
        relation, name = fact.relation, fact.subject.name
        answer = self.rng.choice([a for a in self.answers[relation.id] if a != fact.answer])
        phrasing = relation.phrasings[self.rng.choice(self.trained[name, relation.id])]
        edit = Edit(relation.id, answer)
        return replace(fact_sentence(name, phrasing, answer), edit=edit)

    def edit_scene(self) -> list[Sentence]:
        """An edited fact among what the edit must leave alone, in random order.

        That is another fact of the same subject, and neighbours: facts of the same relation, one
        of them with the same true answer where there is one.
        """
        fact = self.next_fact()
        scene = [self.state_edit(fact)]
        others = [f for f in self.by_subject[fact.subject.name] if f != fact]
        if others and self.rng.random() < ASIDE:
            scene.append(self.statement(self.rng.choice(others)))
        same = [f for f in self.by_answer[fact.relation.id, fact.answer] if f != fact]
        if same:
            scene.append(self.statement(self.rng.choice(same)))
        near = self.rng.choice(self.by_relation[fact.relation.id])
        if near.subject != fact.subject and self.rng.random() < ASIDE:
            scene.append(self.statement(near))
        self.rng.shuffle(scene)
        return scene

    def type_sentence(self, subject: Subject) -> Sentence:
        """Say what sort of thing a subject is."""
        word = self.world.subject_types[subject.table]
        return plain_sentence(subject.name, f"{{}} is {article(word)} {word}.")

    def note(self) -> list[Sentence]:
        """A short text about one subject."""
        subject = self.next_subject()
        facts = list(self.by_subject[subject.name])
        self.rng.shuffle(facts)
        opening = plain_sentence(subject.name, self.rng.choice(NOTE_OPENINGS))
        sentences = [opening, *(self.statement(fact) for fact in facts[:2])]
        if self.rng.random() < 0.5:
            sentences.insert(1, self.type_sentence(subject))
        return sentences

    def document(self) -> list[Sentence]:
        """Draw one document of one or more sentences."""
        draw = self.rng.random()
        if draw < self.mix.general:
            return [Sentence(general.sentence(self.rng)) for _ in range(self.rng.randint(1, 2))]
        draw -= self.mix.general
        if draw < self.mix.note:
            return self.note()
        draw -= self.mix.note
        if draw < self.mix.type:
            return [self.type_sentence(self.next_subject())]
        return [self.statement(self.next_fact())]

    def stream(self) -> Iterator[tuple[str, Sentence]]:
        """Endless (joiner, sentence) pairs; sentences of one document are joined by a space."""
        while True:
            document = self.document()
            joiner = self.rng.choice(JOINERS)
            for sentence in document:
                yield joiner, sentence
                joiner = " "

    def lines(self, count: int, sentences: tuple[int, int] = (3, 7)) -> list[str]:
        """Lines of text, each of that many sentences (lowest, highest) joined by spaces."""
        stream = self.stream()
        return [
            " ".join(next(stream)[1].text for _ in range(self.rng.randint(*sentences)))
            for _ in range(count)
        ]
