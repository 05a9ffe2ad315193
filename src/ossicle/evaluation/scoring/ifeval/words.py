"""How many words and sentences a text has, as instructions about length count them."""

import re

_SENTENCE_END = re.compile(r"[.!?…。！？।]+[\"'”’)\]]*(?=\s|$)|[。！？]+")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev gen sen rep gov capt lt col sgt st jr sr vs e.g i.e cf approx fig vol ed no nos pp".split()
)
"""Words whose full stop ends no sentence, whatever comes next."""
_OFTEN_LAST = frozenset("etc inc ltd co corp u.s u.k u.n a.m p.m b.c a.d ph.d".split())
"""Words whose full stop ends a sentence where a capital follows."""
_CONTRACTION = re.compile(r"(?i)(?<=\w)(n['’]t|['’](?:s|m|d|re|ve|ll))$")


def n_words(text: str) -> int:
    """Words as IFEval counts them: runs of letters, digits and underscores, so that "well-known" is two."""
    return len(re.findall(r"\w+", text))


def n_sentences(text: str) -> int:
    """How many sentences a text has; a last one needs no full stop, and a line's end alone ends none.

    IFEval asks NLTK's trained splitter; this rule stands in for it, with the usual abbreviations, initials and
    numbers told apart from ends. They may differ where a text has unusual abbreviations.
    """
    n, begin = 0, 0
    for end in _SENTENCE_END.finditer(text):
        before, after = text[begin : end.end()], text[end.end() :].lstrip()
        if after and not _ends(before, end[0], after):
            continue
        n += bool(re.search(r"\w", before))
        begin = end.end()
    return max(n + bool(re.search(r"\w", text[begin:])), bool(text.strip()))


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether the mark that ends `before` is a sentence's, given what follows."""
    if mark[0] != ".":
        return True
    is_capital = not re.match(r"[\"'“‘(\[]*[a-z]", after)
    if mark.startswith(("..", "…")):
        return is_capital
    word = before.split()[-1].lower().rstrip(".\"'”’)]").lstrip("\"'“‘([")
    if word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"):
        return False
    return is_capital if word in _OFTEN_LAST else True


def n_capital_words(text: str) -> int:
    """Words all in capitals; a hyphenated one is one word, and of "I'm" the "I" is one."""
    pieces = (piece.strip(".,;:!?\"'“”‘’()[]{}<>*_`~…") for piece in text.split())
    parts = (part for piece in pieces for part in _CONTRACTION.sub(r" \1", piece).split())
    return sum(part.isupper() for part in parts)
