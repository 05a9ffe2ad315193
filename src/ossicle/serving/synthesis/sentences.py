"""Cuts a text that is still being written into sentences to be spoken, without what only eyes can read."""

import html
import re

_ABBREVIATIONS = (r"e\.g", r"i\.e", "Dr", "Mr", "Mrs", "Ms", "St", "vs", "No", "[A-Z]")
_NO_END = "".join(rf"(?<!\b{word})" for word in _ABBREVIATIONS) + r"(?<!^\d)(?<!^\d\d)(?<!\n\d)(?<!\n\d\d)"
"""Before a point that ends no sentence: abbreviations, initials and the numbers of lists."""
_END = re.compile(rf"""(?:(?:{_NO_END}\.|[!?…])[.!?…]*["'”’)\]]*(?=\s)|[。！？]+["'”’」』]*|\n+)\s*""")
_CLAUSE = re.compile(r"[,;:，、；：]\s*|\s[–—-]\s|\s+")
_MAX_CHARACTERS = 240
"""A longer sentence is spoken in parts."""
_THOUGHT = re.compile(r"\s*<(?:\w+:)?think(?:ing)?>")
_THOUGHT_END = re.compile(r"</(?:\w+:)?think(?:ing)?>\s*")
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_LINE_MARK = re.compile(r"^\s*(?:#{1,6}\s+|[-*+]\s+|>\s*)", re.MULTILINE)
_MARK = re.compile(
    r"(?<![\w*])\*+(?=[^\s*])|(?<=[^\s*])\*+(?![\w*])|`+|~~+|\|+|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)"
)
_SPOKEN = re.compile(r"\w")


class SentenceSplitter:
    """Collects text and hands out sentences; joined, they are the text."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> list[str]:
        """Returns the sentences that are complete with some more text."""
        self._text += text
        sentences = []
        while end := self._find_end():
            sentences.append(self._text[:end])
            self._text = self._text[end:]
        return sentences

    def finish(self) -> str:
        """Returns what is left, which may be nothing."""
        text, self._text = self._text, ""
        return text

    def _find_end(self) -> int:
        """Returns the characters of the first sentence; 0 if it is not complete."""
        if _THOUGHT.match(self._text):
            thought = _THOUGHT_END.search(self._text)
            return thought.end() if thought else 0
        end = _END.search(self._text)
        if end and end.end() <= _MAX_CHARACTERS:
            return end.end()
        if len(self._text) <= _MAX_CHARACTERS:
            return 0
        clauses = [
            match.end() for match in _CLAUSE.finditer(self._text, _MAX_CHARACTERS // 2, _MAX_CHARACTERS)
        ]
        return clauses[-1] if clauses else _MAX_CHARACTERS


def to_speech(text: str) -> str:
    """Returns what is to be said of a sentence: no thoughts and no Markdown; empty if there is nothing to say."""
    if _THOUGHT.match(text):
        return ""
    spoken = _LINE_MARK.sub("", _LINK.sub(r"\1", _FENCE.sub("", text)))
    spoken = html.unescape(_TAG.sub(" ", _MARK.sub("", spoken)))
    spoken = "".join(character if character.isprintable() else " " for character in spoken)
    spoken = " ".join(spoken.split())
    return spoken if _SPOKEN.search(spoken) else ""
