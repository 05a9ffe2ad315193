"""Counts words and sentences of a text, as instructions about length do."""

import re

_SENTENCE_END = re.compile(r"[.!?…。！？।]+[\"'”’)\]]*(?=\s|$)|[。！？]+")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev gen sen rep gov capt lt col sgt st jr sr vs e.g i.e cf approx fig vol ed no nos pp".split()
)
"""Words whose period never ends a sentence."""
_SENTENCE_FINAL_ABBREVIATIONS = frozenset("etc inc ltd co corp u.s u.k u.n a.m p.m b.c a.d ph.d".split())
"""Words whose period ends a sentence if a capital follows."""
_CONTRACTION = re.compile(r"(?i)(?<=\w)(n['’]t|['’](?:s|m|d|re|ve|ll))$")


def count_words(text: str) -> int:
    """Returns the number of words as IFEval counts them: runs of word characters, so "well-known" is two."""
    return len(re.findall(r"\w+", text))


def count_sentences(text: str) -> int:
    """Returns the number of sentences. The last one needs no period, and a line break alone ends no sentence.

    IFEval uses NLTK's trained splitter. This rule replaces it and recognizes common abbreviations, initials and
    numbers; the two may differ on unusual abbreviations.
    """
    n, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        before, after = text[start : end.end()], text[end.end() :].lstrip()
        if after and not _ends_sentence(before, end[0], after):
            continue
        n += bool(re.search(r"\w", before))
        start = end.end()
    return max(n + bool(re.search(r"\w", text[start:])), bool(text.strip()))


def _ends_sentence(before: str, punctuation: str, after: str) -> bool:
    """Whether the punctuation at the end of `before` ends a sentence, given the text after it."""
    if punctuation[0] != ".":
        return True
    is_capital = not re.match(r"[\"'“‘(\[]*[a-z]", after)
    if punctuation.startswith(("..", "…")):
        return is_capital
    word = before.split()[-1].lower().rstrip(".\"'”’)]").lstrip("\"'“‘([")
    if word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"):
        return False
    return is_capital if word in _SENTENCE_FINAL_ABBREVIATIONS else True


def count_capital_words(text: str) -> int:
    """Returns the number of words all in capitals; a hyphenated word is one, and in "I'm" the "I" is one."""
    pieces = (piece.strip(".,;:!?\"'“”‘’()[]{}<>*_`~…") for piece in text.split())
    parts = (part for piece in pieces for part in _CONTRACTION.sub(r" \1", piece).split())
    return sum(part.isupper() for part in parts)
