"""The sound people listen to in a report: which items, how browsers play them, which words were misheard."""

import difflib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ossicle.audio.waveform import SAMPLE_RATE, AudioSource, load_audio
from ossicle.errors import AudioError
from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.text_normalization import normalize_text
from ossicle.html_page import encode_data_uri, encode_wav

N_CLIPS = 12
FAILURE_RATIO = 1 / 3
"""The ear's failures among the clips, where there are that many: they are what one learns from."""

MAX_EMBEDDED_BYTES = 400_000
"""Larger files are re-encoded as what the ear is given: mono at 16 kHz."""
MAX_PLAYED_S = 30.0
"""Longer sound is cut in the player, which says so."""

_MIME_TYPES = {
    b"fLaC": "audio/flac",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
}
"""What every browser plays, by a file's first bytes; wav is not here because not every kind of it is."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """Sound for an audio element, or why there is none."""

    uri: str | None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a transcript, beside the words that were said."""

    text: str
    is_wrong: bool = False
    """Written, but not said there."""
    is_missing: bool = False
    """Said, but not written."""


def choose_clips(items: Sequence[ItemResult], n: int = N_CLIPS) -> tuple[ItemResult, ...]:
    """About n items by a fixed rule, in the suite's order: a third the ear's failures, spread over groups.

    Nobody picks the clips, so nobody can pick the flattering ones.
    """
    failures = [item for item in items if not item.ear_correct]
    successes = [item for item in items if item.ear_correct]
    n_failures = min(len(failures), max(round(n * FAILURE_RATIO), n - len(successes)))
    chosen = {
        item.id
        for item in [
            *islice(spread_over_groups(failures), n_failures),
            *islice(spread_over_groups(successes), n - n_failures),
        ]
    }
    return tuple(item for item in items if item.id in chosen)


def spread_over_groups(items: Iterable[ItemResult]) -> Iterator[ItemResult]:
    """The items, one of each group, with and without an instruction, in turn; otherwise shuffled by id.

    A sentence comes again only after all others have come.
    """
    kinds: dict[tuple[str | None, bool], list[ItemResult]] = {}
    for item in sorted(items, key=lambda item: zlib.crc32(item.id.encode())):
        kinds.setdefault((item.group, item.instruction is None), []).append(item)
    queues = [kinds[kind] for kind in sorted(kinds, key=str)]
    n_said: Counter[str] = Counter()
    while any(queues):
        for queue in filter(None, queues):
            item = min(queue, key=lambda item: n_said[normalize_text(item.text)])
            queue.remove(item)
            n_said[normalize_text(item.text)] += 1
            yield item


def build_player(audio: AudioSource | None) -> Player:
    """The sound as a data URI: small mp3 and flac as they are, all else as the ear gets it, in a wav."""
    if audio is None:
        return Player(uri=None, note="The sound is not stored with this report.")
    try:
        encoded = Path(audio).read_bytes() if isinstance(audio, str | Path) else audio
        if isinstance(encoded, bytes) and len(encoded) <= MAX_EMBEDDED_BYTES:
            for start, mime_type in _MIME_TYPES.items():
                if encoded.startswith(start):
                    return Player(uri=encode_data_uri(mime_type, encoded))
        samples = load_audio(audio)
    except (AudioError, OSError) as error:
        return Player(uri=None, note=f"The sound can no longer be read: {error}")
    n_played = round(MAX_PLAYED_S * SAMPLE_RATE)
    note = (
        f"The first {MAX_PLAYED_S:.0f} of {len(samples) / SAMPLE_RATE:.0f} seconds."
        if len(samples) > n_played
        else None
    )
    return Player(uri=encode_data_uri("audio/wav", encode_wav(samples[:n_played])), note=note)


def compare_words(text: str, transcript: str) -> tuple[Word, ...]:
    """A transcript's words with those marked that were not said, and those put in that it lacks."""
    said, written = text.split(), transcript.split()
    matcher = difflib.SequenceMatcher(
        a=[normalize_text(word) for word in said],
        b=[normalize_text(word) for word in written],
        autojunk=False,
    )
    words: list[Word] = []
    for kind, said_from, said_to, written_from, written_to in matcher.get_opcodes():
        is_wrong = kind != "equal"
        words += [Word(text=word, is_wrong=is_wrong) for word in written[written_from:written_to]]
        if kind == "delete":
            words += [Word(text=word, is_missing=True) for word in said[said_from:said_to]]
    return tuple(words)
