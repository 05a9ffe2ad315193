"""The bytes that the tokens of a vocabulary stand for."""

import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
"""SentencePiece's sign for a space."""


def is_byte_fallback(token: str) -> bool:
    """Whether a token is one of SentencePiece's bytes, which spell characters outside the vocabulary."""
    return _BYTE.fullmatch(token) is not None


def read_token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Returns the bytes of each ordinary token: by the alphabet of byte-level BPE, or by the pieces of SentencePiece."""
    ids, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    ordinary = {token: id_ for token, id_ in ids.items() if id_ not in special}
    if sum(token.startswith(_SPACE) for token in ordinary) > sum(
        token.startswith("\u0120") for token in ordinary
    ):
        return {id_: _piece_bytes(token) for token, id_ in ordinary.items()}
    alphabet = _byte_alphabet()
    return {
        id_: bytes(alphabet[character] for character in token)
        for token, id_ in ordinary.items()
        if all(character in alphabet for character in token)
    }


def _piece_bytes(piece: str) -> bytes:
    as_byte = _BYTE.fullmatch(piece)
    return bytes([int(as_byte[1], 16)]) if as_byte else piece.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Maps each character of GPT-2's byte-level alphabet to its byte, as all byte-level BPE vocabularies do.

    Printable bytes of Latin-1 stand for themselves; the others, in order, for the characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
