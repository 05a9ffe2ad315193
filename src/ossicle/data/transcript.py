"""The one rule that normalizes every transcript; it depends on no tokenizer and on no language but the English I."""

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

NORMALIZATION_RULE = "nfc-sentence-1"
"""Name and version of the rule: part of the fingerprint of everything that is computed from texts."""

_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters other than white space
    "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""The joiners U+200C and U+200D are not in it: the spelling of Persian and Hindi needs them."""
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?]) )\W*\w")
_FIRST_PERSON = re.compile(r"\bi\b(?=$|[^\w'’]|['’](?:m|d|s|ll|ve|re)\b)")
_IS_NORMAL = r"^[!-~]*[a-z][!-~]*( [!-~]+)*$|^[!-~]+( [!-~]+)* [!-~]*[a-z][!-~]*( [!-~]+)*$"
"""Plain ASCII words with a lowercase letter among them: most English texts, recognized without calling Python."""


def normalize_transcript(text: str) -> str:
    """Returns the normalized form of a transcript, which training and caches use.

    In this order: control characters, soft hyphens and characters without width (all but the two joiners that belong
    to spelling) are removed; the text is put into Unicode's composed form (NFC); every run of white space becomes one
    space, with none at the ends; if at least two words have letters and no letter is lowercase, as in LibriSpeech,
    the text is put into sentence case, because an LLM reads capitals as shouting: lowercase except for the first
    letter of each sentence and the English "I". Words, punctuation and numbers stay unchanged.
    """
    words = unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split()
    joined = " ".join(words)
    if not joined.isupper() or sum(any(map(str.isalpha, word)) for word in words) < 2:
        return joined
    lowercase = _FIRST_PERSON.sub("I", joined.lower())
    return unicodedata.normalize("NFC", _SENTENCE_START.sub(lambda start: start.group().upper(), lowercase))


def normalize_transcripts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Applies `normalize_transcript` to a column; null where a value is missing, not UTF-8, or empty after it.

    Args:
        texts: strings, large or not; their bytes need not be valid UTF-8
    """
    chunks = [_normalize_chunk(chunk.cast(pa.binary())) for chunk in texts.chunks]
    return pa.chunked_array(chunks, type=pa.string())


def _normalize_chunk(texts: pa.BinaryArray) -> pa.StringArray:
    """Calls Python only for texts that are not recognized as normal."""
    is_normal = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_IS_NORMAL))
    is_other = pc.call_function("invert", [pc.fill_null(is_normal, False)])
    others = [_normalize_bytes(text) for text in texts.filter(is_other).to_pylist()]
    normal = pc.call_function("if_else", [is_other, pa.scalar(None, pa.binary()), texts]).cast(pa.string())
    return pc.call_function("replace_with_mask", [normal, is_other, pa.array(others, pa.string())])


def _normalize_bytes(text: bytes | None) -> str | None:
    try:
        return normalize_transcript(text.decode()) or None if text is not None else None
    except UnicodeDecodeError:
        return None
