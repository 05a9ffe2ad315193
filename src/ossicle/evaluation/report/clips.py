"""The clips of a report: which items are chosen, how browsers play them, and which words were misheard."""

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
"""Ratio of clips that the ear answers wrongly, if there are as many: readers learn most from errors."""

MAX_EMBEDDED_BYTES = 400_000
"""Larger files are converted to the ear's input: mono at 16 kHz."""
MAX_PLAYED_S = 30.0
"""Longer sound is cut off, with a note."""

_MIME_TYPES = {
    b"fLaC": "audio/flac",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
}
"""Formats that every browser plays, by a file's first bytes; WAV is missing because browsers play only some kinds."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """Sound for an audio element, or a note on why there is none."""

    uri: str | None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a transcript, compared with the words that were spoken."""

    text: str
    is_wrong: bool = False
    """Whether it is in the transcript, but was not spoken there."""
    is_missing: bool = False
    """Whether it was spoken, but is not in the transcript."""


def choose_clips(items: Sequence[ItemResult], n: int = N_CLIPS) -> tuple[ItemResult, ...]:
    """Returns about n items in the suite's order, a third of them answered wrongly by the ear, from all groups.

    A fixed rule chooses them, so flattering ones cannot be picked by hand.
    """
    failures = [item for item in items if not item.ear_correct]
    successes = [item for item in items if item.ear_correct]
    n_failures = min(len(failures), max(round(n * FAILURE_RATIO), n - len(successes)))
    chosen = {
        item.id
        for item in [
            *islice(alternate_groups(failures), n_failures),
            *islice(alternate_groups(successes), n - n_failures),
        ]
    }
    return tuple(item for item in items if item.id in chosen)


def alternate_groups(items: Iterable[ItemResult]) -> Iterator[ItemResult]:
    """Yields the items, alternating between groups, and between items with and without an instruction.

    Otherwise the order is random, but fixed by the ids. A sentence is repeated only after all other sentences.
    """
    queues_by_kind: dict[tuple[str | None, bool], list[ItemResult]] = {}
    for item in sorted(items, key=lambda item: zlib.crc32(item.id.encode())):
        queues_by_kind.setdefault((item.group, item.instruction is None), []).append(item)
    queues = [queues_by_kind[kind] for kind in sorted(queues_by_kind, key=str)]
    n_yielded: Counter[str] = Counter()
    while any(queues):
        for queue in filter(None, queues):
            item = min(queue, key=lambda item: n_yielded[normalize_text(item.text)])
            queue.remove(item)
            n_yielded[normalize_text(item.text)] += 1
            yield item


def build_player(audio: AudioSource | None) -> Player:
    """Returns the sound as a data URI: small MP3 and FLAC files unchanged, all other sound as WAV, mono at 16 kHz."""
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
    """Returns the words of a transcript: words that were not spoken are flagged, and missing words are inserted."""
    spoken, written = text.split(), transcript.split()
    matcher = difflib.SequenceMatcher(
        a=[normalize_text(word) for word in spoken],
        b=[normalize_text(word) for word in written],
        autojunk=False,
    )
    words: list[Word] = []
    for kind, spoken_start, spoken_end, written_start, written_end in matcher.get_opcodes():
        is_wrong = kind != "equal"
        words += [Word(text=word, is_wrong=is_wrong) for word in written[written_start:written_end]]
        if kind == "delete":
            words += [Word(text=word, is_missing=True) for word in spoken[spoken_start:spoken_end]]
    return tuple(words)
