"""The one rule by which every transcript is normalised; it knows no tokenizer and no language but the English I."""

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

TEXT_RULE = "nfc-sentence-1"
"""Name of the rule: what is computed from texts belongs to it."""

_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters that are no white space
    "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""The joiners U+200C and U+200D are not among them: Persian and Hindi are spelled with them."""
_START = re.compile(r"(?:^|(?<=[.!?]) )\W*\w")
_FIRST_PERSON = re.compile(r"\bi\b(?=$|[^\w'’]|['’](?:m|d|s|ll|ve|re)\b)")
_IS_NORMAL = r"^[!-~]*[a-z][!-~]*( [!-~]+)*$|^[!-~]+( [!-~]+)* [!-~]*[a-z][!-~]*( [!-~]+)*$"
"""Plain ASCII words with a small letter among them: most of English, told without Python."""


def normalise(text: str) -> str:
    """A transcript as it is learned from.

    In this order: control characters, soft hyphens and marks without width (all but the two joiners that belong
    to spelling) are taken out; Unicode's composed form (NFC); every run of white space becomes one space, and
    none is left at the ends; if two words or more have letters and none of these is small, as in LibriSpeech, the
    text is put into sentence case, because an LLM reads capitals as shouting: small letters but for the first of
    each sentence and the English "I". Words, punctuation and numbers stay as they are.
    """
    words = unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split()
    joined = " ".join(words)
    if not joined.isupper() or sum(any(map(str.isalpha, word)) for word in words) < 2:
        return joined
    small = _FIRST_PERSON.sub("I", joined.lower())
    return unicodedata.normalize("NFC", _START.sub(lambda start: start.group().upper(), small))


def normalised(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Every transcript of a column as `normalise` gives it; null for what is no text, or an empty one.

    Args:
        texts: strings, large or not, in UTF-8 or what is taken for it
    """
    chunks = [_normalised(chunk.cast(pa.binary())) for chunk in texts.chunks]
    return pa.chunked_array(chunks, type=pa.string())


def _normalised(texts: pa.BinaryArray) -> pa.StringArray:
    matched = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_IS_NORMAL))
    is_other = pc.call_function("invert", [pc.fill_null(matched, False)])
    others = [_or_none(text) for text in texts.filter(is_other).to_pylist()]
    plain = pc.call_function("if_else", [is_other, pa.scalar(None, pa.binary()), texts]).cast(pa.string())
    return pc.call_function("replace_with_mask", [plain, is_other, pa.array(others, pa.string())])


def _or_none(text: bytes | None) -> str | None:
    try:
        return normalise(text.decode()) or None if text is not None else None
    except UnicodeDecodeError:
        return None
