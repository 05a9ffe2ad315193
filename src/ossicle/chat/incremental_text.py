"""The text of an answer from its tokens: all at once, or while the tokens come, up to the first stop string.

It knows a tokenizer and the ids that end an answer; it does not know how the tokens are generated.
"""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from ossicle.backbones.token_bytes import is_byte_fallback


def count_until_eos(ids: Sequence[int], eos_ids: Collection[int]) -> int:
    """Returns the number of tokens before the first end of sequence."""
    return next((i for i, token in enumerate(ids) if token in eos_ids), len(ids))


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], eos_ids: Collection[int]) -> str:
    """Returns the text of an answer up to its end, without special tokens and without white space around it."""
    n_tokens = count_until_eos(ids, eos_ids)
    return str(tokenizer.decode(list(ids[:n_tokens]), skip_special_tokens=True)).strip()


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text while they come; the pieces, joined, equal `decode_answer`.

    A character may take several tokens, and the next token may change how the last bytes are decoded: a piece holds
    only text that no further token can change.

    Args:
        eos_ids: ids that end an answer
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]) -> None:
        self.tokenizer, self.eos_ids = tokenizer, frozenset(eos_ids)
        self.ids: list[int] = []
        self._emitted = ""

    def add(self, token: int) -> str:
        """Returns the text that is final now that another token has come; may be empty."""
        self.ids.append(token)
        n_ready = len(self.ids)
        while n_ready and self._is_byte_fallback(self.ids[n_ready - 1]):
            n_ready -= 1
        text = decode_answer(self.tokenizer, self.ids[:n_ready], self.eos_ids).rstrip("�").rstrip()
        if len(text) <= len(self._emitted) or not text.startswith(self._emitted):
            return ""
        piece, self._emitted = text[len(self._emitted) :], text
        return piece

    def flush(self) -> str:
        """Returns the text that is left when no token follows."""
        return decode_answer(self.tokenizer, self.ids, self.eos_ids)[len(self._emitted) :]

    def _is_byte_fallback(self, token: int) -> bool:
        return is_byte_fallback(str(self.tokenizer.convert_ids_to_tokens(token)))


class StopStringBuffer:
    """Passes text on up to the first stop string, and holds back only what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.is_stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """Returns the text that no stop string can begin in any more; may be empty."""
        if self.is_stopped:
            return ""
        held = self._held + text
        starts = [start for stop in self.stop if (start := held.find(stop)) >= 0]
        if starts:
            self.is_stopped, self._held = True, ""
            return held[: min(starts)]
        n_held = max((_count_begun(held, stop) for stop in self.stop), default=0)
        self._held = held[len(held) - n_held :]
        return held[: len(held) - n_held]

    def flush(self) -> str:
        """Returns the text that was held back, when no more follows."""
        held, self._held = self._held, ""
        return held


def _count_begun(text: str, stop: str) -> int:
    """Returns the number of characters at the end of a text that a stop string begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
