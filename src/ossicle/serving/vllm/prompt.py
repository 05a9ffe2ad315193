"""A conversation with sound -> the messages for a vLLM whose token sequence is to be the one that an ear hears in.

vLLM puts the parts of a message together in ways of its own and writes them with the LLM's chat template. So a message
that holds sound is sent as a single part, the words beside the sound among its rows: all that is left to vLLM is to put
one thing between the template's beginning and end. It knows no network.
"""

import base64
import copy
import io
import itertools
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ossicle.chat.messages import parse_conversation
from ossicle.chat.template import AudioSegment, ChatTemplate, Frame, Segment, TextSegment
from ossicle.errors import RequestError
from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.vllm.input_embeddings import EmbedIds

EMBEDS_PLACEHOLDER = "<prompt_embeds>"
"""The special token that vLLM writes in place of embeddings."""
_PASSED_ON: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "refusal": ("refusal",),
    "thinking": ("thinking", "closed"),
    "tool_reference": ("name",),
}
"""Parts without sound that vLLM is given, and which of their fields: with others it takes a text for a picture."""
_JOINED_HERE = ("system", "developer", "user", "assistant")
_ANOTHER_DAY = "2001-02-03"


class VllmTemplate(ChatTemplate):
    """An ear's chat template as vLLM uses it: without a system prompt that nobody sent.

    Args:
        day: in place of the ear's
    """

    def __init__(self, own: ChatTemplate, *, day: str | None = None) -> None:
        super().__init__(own.tokenizer, replace(own.settings, system=None, date=day or own.settings.date))

    @property
    def pinned_kwargs(self) -> dict[str, str]:
        """The ear's day, for templates that vLLM can give one; it drops the name for all others."""
        return {"date_string": self._date["date_string"]}

    @property
    def has_system(self) -> bool:
        """Whether the template shows system messages."""
        return "system" in self._forms

    @cached_property
    def placeholder_frame(self) -> Frame:
        """The ids around a user turn that is nothing but vLLM's mark: those around a sound, once it is put in."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": [EMBEDS_PLACEHOLDER]})
        rendered = self._render(self._one_sound, [EMBEDS_PLACEHOLDER])
        ids = tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        place = ids.index(tokenizer.convert_tokens_to_ids(EMBEDS_PLACEHOLDER))
        return Frame(ids[:place], ids[place + 1 :])

    @cached_property
    def n_undated(self) -> int:
        """How many ids before a sound stay whatever the clock says, counted from the sound."""
        other = VllmTemplate(self, day=_ANOTHER_DAY)
        other._date |= self.pinned_kwargs
        from_sound = zip(reversed(self.frame.prefix), reversed(other._find_frame().prefix), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda ids: ids[0] == ids[1], from_sound))


@dataclass(frozen=True)
class PromptLayout:
    """A conversation ready to be sent, as soon as its sounds are heard."""

    messages: tuple[Any, ...]
    """As they are sent, but for those that hold sound: their content is a tuple of pieces."""
    sounds: tuple[Sound, ...]
    """As the pieces number them."""


class VllmPrompt:
    """Lays out conversations for vLLM as an ear's own template lays them out for the LLM.

    Args:
        own: the ear's, whose system prompt stands where a conversation brings none
        words: the LLM's input embeddings
    """

    def __init__(self, own: ChatTemplate, words: EmbedIds) -> None:
        self.template = VllmTemplate(own)
        self._system, self._words = own.settings.system, words

    def lay_out(self, messages: Sequence[Any]) -> PromptLayout:
        """Check what stands in messages with sound, or would not be text; all else is vLLM's to check.

        Raises:
            RequestError: sound in a message that is not the user's, a part that is neither sound nor text, or words
                beside a sound that the ear's own prompt would not take either
        """
        system, rest = self._told(messages)
        sounds: list[Sound] = []
        laid = []
        for i, message in rest:
            if system and _role(message) == "user" and not self.template.has_system:
                message, system = _begun_with(message, f"{system}\n\n"), None
            laid.append(self._lay_out_message(message, f"messages[{i}]", sounds))
        if system and self.template.has_system:
            laid.insert(0, {"role": "system", "content": system})
        return PromptLayout(tuple(laid), tuple(sounds))

    def build_messages(self, layout: PromptLayout, heard: Sequence[Float[Tensor, "_ D"]]) -> list[Any]:
        """The messages with their sounds as embeddings; takes as long as megabytes take to be written.

        Args:
            heard: the audio tokens of each of the layout's sounds
        """
        return [self._written(message, heard) for message in layout.messages]

    def _told(self, messages: Sequence[Any]) -> tuple[str | None, list[tuple[int, Any]]]:
        """The system prompt that has to be put somewhere, and the messages with their numbers."""
        numbered = list(enumerate(messages))
        first = messages[0] if messages else None
        if _role(first) not in ("system", "developer"):
            return self._system, numbered
        if self.template.has_system:
            return None, numbered
        content = _passed_on(first, "messages[0]").get("content")
        return (content.strip(), numbered[1:]) if isinstance(content, str) else (None, numbered)

    def _lay_out_message(self, message: Any, where: str, sounds: list[Sound]) -> Any:
        parts = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(parts, list):
            return message
        if not any(_is_sound(part) for part in parts):
            return _passed_on(message, where)
        if message.get("role") != "user":
            raise ApiError(
                f"{where} has the role {reprlib.repr(message.get('role'))} and holds sound, which only a user message"
                " can",
                param=where,
            )
        pieces = self._pieces(parts, where)
        own = [part["audio"] for part in parts if _is_sound(part)]
        content = tuple(
            AudioSegment(len(sounds) + piece.index) if isinstance(piece, AudioSegment) else piece
            for piece in pieces
        )
        sounds += own
        return {**message, "content": content}

    def _pieces(self, parts: list[Any], where: str) -> list[Segment]:
        """What stands between the template's beginning and end when a message is the only one."""
        if len(parts) == 1:
            return [AudioSegment(0)]
        try:
            pieces = list(self.template.render([{"role": "user", "content": parts}]))
        except RequestError as error:
            raise ApiError(str(error).replace("messages[0]", where, 1), param=where) from error
        prefix, suffix = self.template.frame
        if not isinstance(pieces[0], TextSegment):  # the template begins with what is said
            pieces.insert(0, TextSegment(()))
        first, last = pieces[0], pieces[-1]
        assert isinstance(first, TextSegment)
        assert isinstance(last, TextSegment), "a template that writes nothing after a sound is refused"
        n_kept = len(last.ids) - len(suffix)
        if first.ids[: len(prefix)] != prefix or last.ids[n_kept:] != suffix:
            raise ApiError(
                f"{where}.content begins or ends with what merges with the chat template around it, as a line break may:"
                " leave out white space at its ends, or send sound and text in messages of their own",
                param=where,
            )
        pieces[-1] = TextSegment(last.ids[:n_kept])
        pieces[0] = TextSegment(first.ids[len(prefix) :])
        return [piece for piece in pieces if piece != TextSegment(())]

    def _written(self, message: Any, heard: Sequence[Float[Tensor, "_ D"]]) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, tuple):
            return message
        rows = []
        for piece in content:
            is_heard = isinstance(piece, AudioSegment)
            rows.append(heard[piece.index] if is_heard else self._words(piece.ids).to(heard[0]))
        return {**message, "content": [build_embeds_part(torch.cat(rows))]}


def build_embeds_part(rows: Float[Tensor, "T D"]) -> dict[str, str]:
    """Rows of input embeddings as a part of a message: in their own float type, which vLLM turns into the LLM's."""
    file = io.BytesIO()
    torch.save(rows.detach().cpu().clone(), file)  # a view would bring along all that it is a view of
    return {"type": "prompt_embeds", "data": base64.b64encode(file.getvalue()).decode("ascii")}


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _is_sound(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "audio"


def _begun_with(message: Any, text: str) -> Any:
    """A user message with more text before it."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}, *content]}
    return {**message, "content": text + content} if isinstance(content, str) else message


def _passed_on(message: Any, where: str) -> Any:
    """A message without sound as vLLM is given it: several texts are one, put together as an ear's own prompt does."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    passed = []
    for j, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _PASSED_ON:
            raise ApiError(
                f"{where}.content[{j}] is of type {reprlib.repr(kind)}, expected text, or sound as input_audio",
                param=f"{where}.content[{j}]",
            )
        passed.append({"type": kind, **{name: part[name] for name in _PASSED_ON[kind] if name in part}})
    texts = [part.get("text") for part in passed if part["type"] == "text"]
    words = [text for text in texts if isinstance(text, str)]
    if message.get("role") in _JOINED_HERE and len(words) == len(passed) and "".join(words).strip():
        turn = parse_conversation([{"role": "user", "content": passed}]).turns[0]
        return {**message, "content": "".join(map(str, turn.content))}
    return {**message, "content": passed}
