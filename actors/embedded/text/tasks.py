"""The tasks of the embedded text pool: one table of prompts, answers and generators.

Each task is lexical: its label follows from which words a prompt holds. A generator may use the
first half of each word list only (`known`), so that a base can be pretrained that knows half of a
task. Answers of different tasks differ: an expert of another task that is surer of a shared answer
would mislead methods that minimise entropy.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

Rng: TypeAlias = np.random.Generator


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


POSITIVE = words(
    "good great fine lovely superb pleasant bright clever charming fresh solid splendid"
)
NEGATIVE = words("bad awful poor nasty dull horrible gloomy stupid boring stale shabby dreadful")
THINGS = words("film book hotel meal concert garden lesson market poster sofa story ticket")
PLACES = words("kitchen street harbour station office valley")

TOPICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sport": words("goal referee stadium tennis runner medal league coach racket sprint"),
        "science": words("atom planet cell theory gravity enzyme laser fossil proton orbit"),
        "music": words("violin melody chord singer drum opera rhythm flute choir ballad"),
        "money": words("bank loan market price tax salary budget coin profit debt"),
    }
)

KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "animal": words("cat horse eagle frog whale tiger goat spider rabbit crow"),
        "food": words("bread cheese apple soup rice carrot honey pasta pepper butter"),
        "tool": words("hammer saw drill wrench shovel chisel axe pliers rake ladder"),
        "human": words("doctor farmer teacher sailor child nurse baker king painter judge"),
    }
)

COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "open": words("unlock unseal unwrap uncover unfold unbolt"),
        "clean": words("wash scrub wipe rinse polish sweep"),
        "buy": words("purchase acquire order procure shop obtain"),
        "repair": words("fix mend restore patch rebuild service"),
        "move": words("shift carry push drag transfer relocate"),
    }
)

QUESTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "person": (
            "who",
            "whose friend",
            "which actor",
            "what singer",
            "which leader",
            "what hero",
        ),
        "place": (
            "where",
            "in which town",
            "at what spot",
            "which country",
            "what city",
            "near what river",
        ),
        "time": (
            "when",
            "in which year",
            "at what hour",
            "on which day",
            "what month",
            "since what date",
        ),
        "number": (
            "how many",
            "how much",
            "what amount",
            "which quantity",
            "how often",
            "what count",
        ),
    }
)
ENDINGS = (
    "did the party begin", "was the letter sent", "do they like", "will she visit",
    "was named in the report", "did we see",
)  # fmt: skip
STARTS = ("please", "now", "could you", "you should")
ENDS = ("today", "again", "once", "late")

NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    " fifteen sixteen seventeen eighteen nineteen"
)


def some(listed: Sequence[str], known: bool) -> Sequence[str]:
    """The words a generator may use: all, or the first half."""
    return listed[: (len(listed) + 1) // 2] if known else listed


def one(listed: Sequence[str], rng: Rng, known: bool = False) -> str:
    """A random word of a list, or of its first half."""
    allowed = some(listed, known)
    return allowed[int(rng.integers(len(allowed)))]


def sentiment(label: int, rng: Rng, known: bool) -> str:
    """A polarity, perhaps negated, after a clause that does not count."""
    negated = bool(rng.integers(2))
    listed = POSITIVE if bool(label) != negated else NEGATIVE
    clause = ""
    if rng.integers(2):
        other = one((POSITIVE, NEGATIVE)[rng.integers(2)], rng, known)
        clause = f"the {one(THINGS, rng)} looked {other} but "
    return (
        f"{clause}the {one(THINGS, rng)} was {'not ' if negated else ''}{one(listed, rng, known)}"
    )


def question(label: int, rng: Rng, known: bool) -> str:
    """A question; its first words give its type."""
    asked = one(QUESTIONS[tuple(QUESTIONS)[label]], rng, known)
    return f"{asked} {one(ENDINGS, rng)} in the {one(PLACES, rng)} with the {one(THINGS, rng)}"


def topic(label: int, rng: Rng, known: bool) -> str:
    """Four words of one topic among two of another, shuffled."""
    names = tuple(TOPICS)
    other = names[(label + rng.integers(1, len(names))) % len(names)]
    drawn = [
        *rng.choice(some(TOPICS[names[label]], known), 4, replace=False),
        *rng.choice(some(TOPICS[other], known), 2, replace=False),
    ]
    return " ".join(rng.permutation(drawn))


def larger(label: int, rng: Rng, known: bool) -> str:
    """Two different number words; with `known`, both are even, which is half of them."""
    top = label + 1
    allowed = [n for n in range(top) if not known or n % 2 == 0]
    pair = [NUMBERS[top], NUMBERS[allowed[rng.integers(len(allowed))]]]
    first, second = rng.permutation(pair)
    scene = f"of the {one(THINGS, rng)} in the {one(PLACES, rng)} {one(ENDS, rng)}"
    return f"{first} or {second} {scene}"


def kind(label: int, rng: Rng, known: bool) -> str:
    """A noun in a scene."""
    noun = one(KINDS[tuple(KINDS)[label]], rng, known)
    scene = f"near the {one(PLACES, rng)} we saw the {noun} beside the {one(THINGS, rng)}"
    return f"{scene} {one(ENDS, rng)}"


def intent(label: int, rng: Rng, known: bool) -> str:
    """A synonym of a command."""
    verb = one(COMMANDS[tuple(COMMANDS)[label]], rng, known)
    return f"{one(STARTS, rng)} {verb} the {one(THINGS, rng)} in the {one(PLACES, rng)}"


@dataclass(frozen=True)
class Drawing:
    """One task: its prompt, its answers, and how a text of a label is drawn."""

    template: str
    """With `{text}` where the text goes."""
    targets: tuple[str, ...]
    """Answers, a word each, by label."""
    draw: Callable[[int, Rng, bool], str]
    """(label, generator, whether only the known half of the words) -> a text."""


DRAWINGS: Mapping[str, Drawing] = MappingProxyType(
    {
        "sentiment": Drawing(
            "sentiment of : {text} . positive or negative ?", ("negative", "positive"), sentiment
        ),
        "qtype": Drawing("what does this ask for : {text} ?", tuple(QUESTIONS), question),
        "topic": Drawing("topic of the words : {text} .", tuple(TOPICS), topic),
        "larger": Drawing("the larger number : {text} ?", tuple(NUMBERS[1:]), larger),
        "kind": Drawing("kind of thing : {text} .", tuple(KINDS), kind),
        "intent": Drawing("what to do : {text} .", tuple(COMMANDS), intent),
    }
)


def vocabulary() -> list[str]:
    """All words of prompts and answers, sorted."""
    texts = [*POSITIVE, *NEGATIVE, *THINGS, *PLACES, *ENDINGS, *STARTS, *ENDS, *NUMBERS]
    for groups in (TOPICS, KINDS, COMMANDS, QUESTIONS):
        texts += [word for listed in groups.values() for word in listed]
    for drawing in DRAWINGS.values():
        texts += [drawing.template.replace("{text}", ""), *drawing.targets]
    texts += ["the looked but was not of in or near we saw beside with"]
    return sorted({word for text in texts for word in text.split()})


@dataclass(frozen=True)
class Part:
    """Texts and labels of one split."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def generator(task: str, split: str, seed: int) -> Rng:
    """Random numbers of their own for each task and split."""
    return np.random.default_rng([seed, zlib.crc32(f"{task}/{split}".encode())])


def draw(task: str, split: str, count: int, seed: int, seen: set[str], known: bool = False) -> Part:
    """Draw a split of balanced classes; no text occurs twice, or in `seen`.

    Args:
        task: a name of `DRAWINGS`.
        split: names the random numbers.
        count: texts.
        seed: of the pool.
        seen: texts of earlier splits; those of this one are added.
        known: use the first half of each word list only. Labels that need other words are left out.
    """
    drawing, rng = DRAWINGS[task], generator(task, split, seed)
    allowed = [
        label
        for label in range(len(drawing.targets))
        if not (known and task == "larger" and label % 2 == 0)
    ]
    labels = [
        int(label) for label in rng.permutation([allowed[i % len(allowed)] for i in range(count)])
    ]
    texts = []
    for label in labels:
        while (text := drawing.draw(label, rng, known)) in seen:
            pass
        seen.add(text)
        texts.append(text)
    return Part(tuple(texts), tuple(labels))


def guessed(task: str, count: int, seed: int, seen: set[str]) -> Part:
    """Texts with all words, and random labels: a base pretrained on them is unsure, not wrong."""
    part = draw(task, "guessed", count, seed, seen)
    labels = generator(task, "guessed labels", seed).integers(
        len(DRAWINGS[task].targets), size=count
    )
    return Part(part.texts, tuple(int(label) for label in labels))
