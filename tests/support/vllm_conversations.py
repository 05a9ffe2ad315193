"""Conversations whose prompts are compared with vLLM's, and the chat template families grouped by how exact that is."""

from typing import Any

import numpy as np

from ossicle.serving.engine import Sound
from support.fake_vllm import text_part, user_message
from support.tiny_tokenizers import FAMILIES


def sound_part(number: int) -> dict[str, Any]:
    """A tone, as a decoded part of a message; each number is another pitch."""
    tone = 0.3 * np.sin(np.arange(4_000) * (0.1 + 0.1 * number)).astype(np.float32)
    return {"type": "audio", "audio": Sound(samples=tone, key=str(number))}


CONVERSATIONS: dict[str, list[Any]] = {
    "a sound": [user_message(sound_part(0))],
    "text before a sound": [user_message(text_part("Answer in one word."), sound_part(1))],
    "text around sounds": [
        user_message(text_part("both: "), sound_part(0), text_part(" or "), sound_part(1), text_part("?"))
    ],
    "white space": [user_message(text_part("yes, \n"), sound_part(0), text_part("  \n(no)"))],
    "system": [
        {"role": "system", "content": [text_part("Be"), text_part("brief.")]},
        user_message(text_part("So:"), sound_part(0)),
    ],
    "turns": [
        user_message(text_part("hello,"), text_part("you"), sound_part(0)),
        {"role": "assistant", "content": [text_part("hi"), text_part("there")]},
        user_message(text_part("why?")),
        {"role": "assistant", "content": "because."},
        user_message(sound_part(1), sound_part(2)),
    ],
}

WHITE_SPACE_FAMILIES = ("mistral", "llama2", "parts", "plain")
"""Their templates put a space between their own text and the content of a message."""
EXACT_FAMILIES = [name for name in FAMILIES if name not in (*WHITE_SPACE_FAMILIES, "tight", "mistral-small")]
"""vLLM's prompt has exactly the tokens of the ear's own."""
