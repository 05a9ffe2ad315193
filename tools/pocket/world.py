"""The texts of the pocket world: questions with their answers, statements, and random words.

Questions and instructions are for the LLM's own training (as text) and for the evaluation (as speech). Statements and
random words are for the speech encoder and the distillation. `starts_like_question` keeps the two apart by
construction.
"""

import collections
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tools.pocket import facts

INSTRUCTIONS = {
    "spanish": ("Answer in Spanish.", "Please answer in Spanish."),
    "capitals": ("Answer in capital letters.", "Please answer in capital letters."),
    "one_word": ("Answer in one word.", "Please answer in one word."),
}


_SKILLS_WITHOUT_CAPITALS = ("repeating", "spelling")
"""Repeating may need any word, and few words are known in capitals. Spelling is in capitals already."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question with the LLM's answer in each form that an instruction can ask for."""

    skill: str
    question: str
    answer: str
    one_word: str | None = None
    spanish: str | None = None

    def answer_for(self, instruction: str) -> str | None:
        """Returns the answer that follows an instruction, a key of `INSTRUCTIONS`; None if it makes no sense."""
        match instruction:
            case "capitals" if self.skill not in _SKILLS_WITHOUT_CAPITALS:
                return self.answer.upper()
            case "one_word":
                return self.one_word
            case "spanish":
                return self.spanish
        return None


def _capitalize(name: str) -> str:
    return name[:1].upper() + name[1:]


def _add_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _build_exchange(skill: str, question: str, answer: str, key: str | None = None) -> Exchange:
    """Returns an exchange whose one-word and Spanish answers are built from the key word of the answer."""
    spanish = facts.SPANISH.get(key) if key else None
    return Exchange(
        skill=skill,
        question=question,
        answer=answer,
        one_word=_capitalize(key) + "." if key else None,
        spanish=_capitalize(spanish) + "." if spanish else None,
    )


def _draw_capital(rng: random.Random) -> Exchange:
    country, city = rng.choice(list(facts.CAPITALS.items()))
    question = rng.choice(
        ("what is the capital of {}", "tell me the capital of {}", "which city is the capital of {}")
    ).format(country)
    return _build_exchange(
        "capitals", question, f"The capital of {_capitalize(country)} is {_capitalize(city)}.", city
    )


def _draw_continent(rng: random.Random) -> Exchange:
    country, continent = rng.choice(list(facts.CONTINENTS.items()))
    question = rng.choice(("where is {}", "in which part of the world is {}")).format(country)
    return _build_exchange(
        "places", question, f"{_capitalize(country)} is in {_capitalize(continent)}.", continent
    )


def _draw_opposite(rng: random.Random) -> Exchange:
    word, other = rng.choice(list(facts.OPPOSITES.items()))
    question = rng.choice(("what is the opposite of {}", "tell me the opposite of {}")).format(word)
    return _build_exchange("opposites", question, f"The opposite of {word} is {other}.", other)


def _draw_animal_sound(rng: random.Random) -> Exchange:
    animal, sound = rng.choice(list(facts.ANIMAL_SOUNDS.items()))
    question = rng.choice(("what does the {} say", "what sound does {} make")).format(animal)
    if "sound" in question:
        question = f"what sound does {_add_article(animal)} make"
    return _build_exchange("animal sounds", question, f"The {animal} says {sound}.", sound)


def _draw_legs(rng: random.Random) -> Exchange:
    animal, count = rng.choice(list(facts.LEGS.items()))
    return _build_exchange(
        "legs",
        f"how many legs does {_add_article(animal)} have",
        f"{_capitalize(_add_article(animal))} has {count} legs.",
        count,
    )


def _draw_color(rng: random.Random) -> Exchange:
    thing, color = rng.choice(list(facts.COLORS.items()))
    question = rng.choice(("what colour is the {}", "which colour does the {} have")).format(thing)
    return _build_exchange("colours", question, f"The {thing} is {color}.", color)


def _draw_spanish(rng: random.Random) -> Exchange:
    word = rng.choice(facts.TRANSLATABLE)
    question = rng.choice(
        ("how do you say {} in spanish", "what is the spanish word for {}", "what does {} mean in spanish")
    ).format(word)
    spanish = _capitalize(facts.SPANISH[word])
    return Exchange(
        skill="spanish words",
        question=question,
        answer=f"In Spanish it is {facts.SPANISH[word]}.",
        one_word=f"{spanish}.",
        spanish=f"{spanish}.",
    )


def _draw_sum(rng: random.Random) -> Exchange:
    first, second = rng.randint(0, 10), rng.randint(0, 10)
    a, b = facts.NUMBERS[first], facts.NUMBERS[second]
    total = facts.NUMBERS[first + second]
    question = rng.choice(("what is {} plus {}", "how much is {} plus {}", "add {} and {}")).format(a, b)
    return _build_exchange("sums", question, f"{_capitalize(a)} plus {b} is {total}.", total)


def _draw_difference(rng: random.Random) -> Exchange:
    first = rng.randint(0, 10)
    second = rng.randint(0, first)
    a, b = facts.NUMBERS[first], facts.NUMBERS[second]
    rest = facts.NUMBERS[first - second]
    question = rng.choice(("what is {} minus {}", "how much is {} minus {}")).format(a, b)
    return _build_exchange("differences", question, f"{_capitalize(a)} minus {b} is {rest}.", rest)


def _draw_spelling(rng: random.Random) -> Exchange:
    word = rng.choice(facts.SPELLING_WORDS)
    question = rng.choice(("how do you spell {}", "spell the word {}")).format(word)
    return Exchange(skill="spelling", question=question, answer="-".join(word.upper()) + ".")


def _draw_comparison(rng: random.Random) -> Exchange:
    first, second = rng.sample(range(len(facts.ANIMALS_BY_SIZE)), 2)
    adjective = rng.choice(("bigger", "smaller"))
    animal = facts.ANIMALS_BY_SIZE[(max if adjective == "bigger" else min)(first, second)]
    a, b = _add_article(facts.ANIMALS_BY_SIZE[first]), _add_article(facts.ANIMALS_BY_SIZE[second])
    question = rng.choice(("which is {} {} or {}", "what is {} {} or {}")).format(adjective, a, b)
    return _build_exchange("comparing", question, f"The {animal} is {adjective}.", animal)


def _draw_counting(rng: random.Random) -> Exchange:
    start = rng.choice((1, 1, 2, 3))
    stop = rng.randint(start + 2, min(start + 7, 10))
    form = "count to {1}" if start == 1 else "count from {0} to {1}"
    numbers = facts.NUMBERS[start : stop + 1]
    return Exchange(
        skill="counting",
        question=rng.choice((form, "can you " + form)).format(facts.NUMBERS[start], facts.NUMBERS[stop]),
        answer=_capitalize(", ".join(numbers)) + ".",
    )


def _draw_before_or_after(rng: random.Random) -> Exchange:
    kind, words = rng.choice((("day", facts.DAYS), ("month", facts.MONTHS), ("number", facts.NUMBERS)))
    index = rng.randrange(1, len(words) - 1)
    direction, step = rng.choice((("after", 1), ("before", -1)))
    word, answer = words[index], words[index + step]
    display = (lambda text: text) if kind == "number" else _capitalize
    return _build_exchange(
        "before and after",
        f"what {kind} comes {direction} {word}",
        f"{_capitalize(answer)} comes {direction} {display(word)}.",
        answer,
    )


def _draw_plural(rng: random.Random) -> Exchange:
    word, plural = rng.choice(list(facts.PLURALS.items()))
    return _build_exchange(
        "plurals", f"what is the plural of {word}", f"The plural of {word} is {plural}.", plural
    )


def _draw_past_tense(rng: random.Random) -> Exchange:
    word, past = rng.choice(list(facts.PAST_TENSES.items()))
    return _build_exchange(
        "past tense", f"what is the past tense of {word}", f"The past tense of {word} is {past}.", past
    )


def _draw_young_animal(rng: random.Random) -> Exchange:
    animal, young = rng.choice(list(facts.YOUNG_ANIMALS.items()))
    question = rng.choice(("what do you call a young {}", "what is a young {} called")).format(animal)
    return _build_exchange(
        "young animals", question, f"A young {animal} is called {_add_article(young)}.", young
    )


SMALL_TALK = {
    "hello": "Hello! What would you like to know?",
    "good morning": "Good morning! I hope you slept well.",
    "how are you": "I am fine, thank you. And you?",
    "how are you today": "I am fine, thank you. And you?",
    "who are you": "I am a very small language model with ears.",
    "what are you": "I am a very small language model with ears.",
    "what can you do": "I can answer small questions that you say aloud.",
    "tell me a joke": "Why did the duck cross the road? To prove it was no chicken.",
    "thank you": "You are welcome.",
    "thank you very much": "You are welcome.",
    "goodbye": "Goodbye! Come again soon.",
    "can you hear me": "Yes, I hear every word.",
    "do you like music": "Yes, I like every sound.",
    "where do you live": "I live in a very small file.",
    "how old are you": "I was made a short while ago.",
    "are you happy": "Yes, I am happy when somebody talks to me.",
}


def _draw_small_talk(rng: random.Random) -> Exchange:
    question, answer = rng.choice(list(SMALL_TALK.items()))
    return Exchange(skill="small talk", question=question, answer=answer)


def _draw_repetition(rng: random.Random) -> Exchange:
    phrase = rng.choice(
        (_draw_noun_phrase, lambda r: f"{_draw_noun_phrase(r)} {r.choice(facts.INTRANSITIVE)}", _draw_words)
    )(rng)
    question = rng.choice(("repeat after me {}", "say the words {}")).format(phrase)
    return Exchange(skill="repeating", question=question, answer=phrase + ".")


SKILLS: tuple[Callable[[random.Random], Exchange], ...] = (
    _draw_capital,
    _draw_continent,
    _draw_opposite,
    _draw_animal_sound,
    _draw_legs,
    _draw_color,
    _draw_spanish,
    _draw_sum,
    _draw_difference,
    _draw_spelling,
    _draw_comparison,
    _draw_counting,
    _draw_before_or_after,
    _draw_plural,
    _draw_past_tense,
    _draw_young_animal,
    _draw_small_talk,
    _draw_repetition,
)


def _draw_noun_phrase(rng: random.Random) -> str:
    noun = rng.choice((*facts.THINGS, *facts.ANIMALS, *facts.PEOPLE))
    return " ".join(("the", *([rng.choice(facts.ADJECTIVES)] if rng.random() < 0.6 else []), noun))


def _draw_words(rng: random.Random) -> str:
    return " ".join(rng.choices(vocabulary(), k=rng.randint(2, 4)))


def draw_statement(rng: random.Random) -> str:
    """Draws a declarative sentence in lower case, without punctuation."""
    subject, thing = _draw_noun_phrase(rng), _draw_noun_phrase(rng)
    where = f"{rng.choice(facts.PREPOSITIONS)} the {rng.choice(facts.PLACES)}"
    person, name, other = rng.choice(facts.PEOPLE), *rng.sample(facts.NAMES, 2)
    country, city = rng.choice(list(facts.CAPITALS.items()))
    number = rng.choice(facts.NUMBERS)
    day, month = rng.choice(facts.DAYS), rng.choice(facts.MONTHS)
    forms = (
        f"{subject} {rng.choice(facts.VERBS)} {thing} {where}",
        f"{subject} {rng.choice(facts.VERBS)} {thing}",
        f"{name} {rng.choice(facts.VERBS)} {thing} {rng.choice(facts.ADVERBS)}",
        f"my {person} {rng.choice(facts.INTRANSITIVE)} {where} {rng.choice(facts.ADVERBS)}",
        f"{subject} is {rng.choice(facts.ADJECTIVES)} and {rng.choice(facts.ADJECTIVES)}",
        f"{name} and {other} {rng.choice(facts.PAST_VERBS)} {thing} {where}",
        f"we {rng.choice(facts.PAST_VERBS)} {number} {rng.choice(list(facts.PLURALS.values()))} {where}",
        f"my {person} lives in {city} and my {rng.choice(facts.PEOPLE)} lives in {country}",
        f"they go to {country} on {day}",
        f"there is {rng.choice(facts.WEATHER)} in {city} in {month}",
        f"i like {rng.choice(list(facts.COLORS.values()))} {rng.choice(facts.THINGS)}",
        f"on {day} {subject} {rng.choice(facts.INTRANSITIVE)} {where}",
        f"you are my {rng.choice(facts.ADJECTIVES)} {person}",
        f"in {month} {name} makes {number} {rng.choice(list(facts.PLURALS.values()))}",
        f"she {rng.choice(facts.PAST_VERBS)} {thing} before {day}",
    )
    return rng.choice(forms)


def draw_fact(rng: random.Random) -> str:
    """Draws an answer of the LLM as a statement, or a sentence with many function words."""
    if rng.random() < 0.4:
        while True:
            answer = rng.choice(SKILLS)(rng).answer.lower()
            text = "".join(character for character in answer if character.isalpha() or character == " ")
            if set(text.split()) <= set(vocabulary()) and " " in text and not starts_like_question(text):
                return text
    person, thing, where = rng.choice(facts.PEOPLE), rng.choice(facts.THINGS), rng.choice(facts.PLACES)
    animal, word, other = rng.choice(facts.ANIMALS), *rng.sample(vocabulary(), 2)
    number, name, country = (
        rng.choice(facts.NUMBERS),
        rng.choice(facts.NAMES),
        rng.choice(list(facts.CAPITALS)),
    )
    forms = (
        f"my {person} remembers what is in the {where}",
        f"{name} remembers how many {rng.choice(list(facts.PLURALS.values()))} there are in the {where}",
        f"{name} hears which {thing} is the {rng.choice(facts.ADJECTIVES)} one",
        f"the {animal} and the {person} do what you do",
        f"there is what you call {_add_article(thing)}",
        f"you are called {word} and how do you do",
        f"you can tell me what sound {_add_article(animal)} does make",
        f"we count from the {thing} to {number} and say {word}",
        f"my {person} forgets the word for {_add_article(thing)}",
        f"there is much of what i do in {country}",
        f"the capital of {country} is where you live",
        f"they say thank you to the {person} and goodbye to {name}",
        f"the {person} comes after {name} and before the {animal}",
        f"{_add_article(animal)} is smaller or bigger than {_add_article(thing)}".replace(" than", " or"),
        f"the opposite of {word} is {other}",
        f"the plural of {word} and the past tense of {other}",
        f"{word} plus {number} and {other} minus {number}",
        f"the spanish word for {word} is {other}",
        f"they tell me the {word} of {country}",
        f"which {word} and what {other} and where in the world",
    )
    return rng.choice(forms)


@functools.cache
def _compute_word_weights() -> tuple[float, ...]:
    """Returns the weight of each word in random words. Words that are frequent in questions have a higher weight."""
    counts = collections.Counter(word for question in sampled_questions() for word in set(question.split()))
    return tuple(8.0 if counts[word] >= 12 else 1.0 for word in vocabulary())


def draw_word_sequence(rng: random.Random) -> str:
    """Draws two to nine random words of the vocabulary that do not start like a question or an instruction."""
    while True:
        weights = _compute_word_weights() if rng.random() < 0.5 else None
        text = " ".join(rng.choices(vocabulary(), weights, k=rng.randint(2, 9)))
        if not starts_like_question(text):
            return text


@functools.cache
def _collect_word_pairs() -> tuple[str, ...]:
    """Returns all pairs of words that are adjacent in a question or a statement."""
    rng = random.Random(4)
    texts = [draw_statement(rng) for _ in range(2_000)] + [draw_fact(rng) for _ in range(4_000)]
    return tuple(
        sorted({" ".join(pair) for text in (*sampled_questions(), *texts) for pair in pairwise(text.split())})
    )


@functools.cache
def _collect_common_pairs() -> tuple[str, ...]:
    """Returns the pairs of words that are frequent in questions, which fluent speech runs together."""
    common = {word for word, weight in zip(vocabulary(), _compute_word_weights(), strict=True) if weight > 1}
    return tuple(pair for pair in _collect_word_pairs() if set(pair.split()) <= common)


@functools.cache
def _collect_successors() -> dict[str, tuple[str, ...]]:
    """Returns the words that can follow each word."""
    successors = collections.defaultdict(list)
    for pair in _collect_word_pairs():
        first, second = pair.split()
        successors[first].append(second)
    return {first: tuple(seconds) for first, seconds in successors.items()}


@functools.cache
def _collect_opening_pairs() -> tuple[tuple[str, ...], ...]:
    """Returns the first two words of questions and instructions, such as "what is"."""
    return tuple(sorted({opening[:2] for opening in question_openings()}))


def draw_pair_sequence(rng: random.Random, opening_ratio: float) -> str:
    """Draws three to nine words, most of which can follow the previous word: transitions of fluent speech.

    Args:
        opening_ratio: ratio of texts that start with the first two words of a question, but are not one
    """
    while True:
        words, n_words = [], rng.randint(3, 9)
        if rng.random() < opening_ratio:
            words += rng.choice(_collect_opening_pairs())
        while len(words) < n_words:
            draw = rng.random()
            if draw < 0.45 and words and words[-1] in _collect_successors():
                words.append(rng.choice(_collect_successors()[words[-1]]))
            elif draw < 0.85:
                pairs = rng.choice((_collect_word_pairs, _collect_common_pairs, _collect_common_pairs))()
                words += rng.choice(pairs).split()
            else:
                words.append(rng.choice(vocabulary()))
        text = " ".join(words)
        if not starts_like_question(text) and not contains_question(text):
            return text


def draw_single_word(rng: random.Random) -> str:
    """Draws one word that is not a whole question."""
    while True:
        word = rng.choice(vocabulary())
        if not starts_like_question(word):
            return word


def draw_introduction(rng: random.Random) -> str:
    """Draws a statement in which people introduce themselves by name."""
    return rng.choice(("my name is {}", "i am called {}", "hello my name is {}")).format(
        rng.choice(facts.NAMES)
    )


@functools.cache
def sampled_questions() -> frozenset[str]:
    """Returns nearly all questions and instructions. Of those that repeat random words, it has only the openings."""
    rng = random.Random(0)
    return frozenset(
        skill(rng).question for skill in SKILLS if skill is not _draw_repetition for _ in range(2_500)
    ) | {"what is my name", "do you remember my name", "who am i", "repeat after me", "say the words"}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Returns all words of the pocket world, sorted."""
    rng = random.Random(1)
    texts = [draw_statement(rng) for _ in range(20_000)] + [draw_introduction(rng) for _ in range(500)]
    words = {word for text in (*texts, *sampled_questions()) for word in text.split()}
    return tuple(sorted(words))


@functools.cache
def question_openings() -> frozenset[tuple[str, ...]]:
    """Returns the first three words of each question and instruction, or all words of a shorter one."""
    return frozenset(tuple(text.split()[:3]) for text in sampled_questions())


def contains_question(text: str) -> bool:
    """Whether the text contains a whole question or instruction of three words or more."""
    words = text.split()
    return any(
        " ".join(words[first:stop]) in sampled_questions()
        for first in range(len(words) - 2)
        for stop in range(first + 3, len(words) + 1)
    )


def starts_like_question(text: str) -> bool:
    """Whether the text starts with the first three words of a question or instruction, or is a shorter one."""
    return tuple(text.split()[:3]) in question_openings()
