"""A prompt as text and audio in order, and how audio is cut out of the ids of a whole prompt; it knows no template.

One rule: ids that are there whatever is said belong to the template, all others to what is said. So a space
that merges into a word ("[INST] Hello": "[INST]", "▁Hello") goes with the word, and what surrounds a sound is
a constant, the same in training, in caches and at inference.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Ids: TypeAlias = tuple[int, ...]

PROBES = (
    *("hello", "The end.", "7", "Why?", '"Yes"', "(no)", "-5%", "'tis so!"),
    *("école…", "好。", "$a:", "#b;", "¿c,", "It's 10'"),
)
"""Texts in place of speech, with first and last characters that tokenizers merge in different ways."""


@dataclass(frozen=True)
class TextSegment:
    """Ids that the LLM reads."""

    ids: Ids


@dataclass(frozen=True)
class AudioSegment:
    """The position of audio tokens: the number of the sound, and the ids of its transcript where that is known."""

    index: int
    transcript_ids: Ids = ()


Segment: TypeAlias = TextSegment | AudioSegment


class Frame(NamedTuple):
    """The constant ids around a single sound."""

    prefix: Ids
    suffix: Ids


@dataclass(frozen=True)
class SplitPrompt:
    """The prompt of a user turn that is one text; prefix, text and suffix joined are the whole prompt."""

    prefix: Ids
    text: Ids
    suffix: Ids
    is_framed: bool
    """Whether prefix and suffix are the template's constant frame. If not, this text merges with a neighbor
    as no probe does: the merged ids are in `text`, and prefix or suffix is shorter than the frame's."""


def cut_out_audio(encode: Callable[[Sequence[str]], Ids], fills: Sequence[str]) -> list[Segment]:
    """Returns the whole with an audio segment for each fill: from its first to its last id that depends on the fill.

    Args:
        encode: returns the ids of the whole with the given texts in place of the sounds
        fills: a text in place of each sound
    """
    ids = encode(fills)
    segments: list[Segment] = []
    done = 0
    for i in range(len(fills)):
        rows = [ids, *(encode((*fills[:i], probe, *fills[i + 1 :])) for probe in PROBES)]
        start = max(done, count_common_prefix(*rows))
        stop = max(start, len(ids) - count_common_suffix(*rows))
        segments += [TextSegment(ids[done:start]), AudioSegment(i, ids[start:stop])]
        done = stop
    return [*segments, TextSegment(ids[done:])]


def merge_segments(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Returns the segments with neighboring texts joined and empty ones dropped."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, TextSegment) and merged and isinstance(merged[-1], TextSegment):
            merged[-1] = TextSegment(merged[-1].ids + segment.ids)
        elif segment != TextSegment(()):
            merged.append(segment)
    return tuple(merged)


def count_common_prefix(*rows: Ids) -> int:
    """Returns the number of ids that all rows begin with."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def count_common_suffix(*rows: Ids) -> int:
    """Returns the number of ids that all rows end with."""
    return count_common_prefix(*(row[::-1] for row in rows))
