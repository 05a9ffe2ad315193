"""Builds the messages for vLLM so that the LLM reads the same tokens and embeddings as in the ear's own prompt.

vLLM joins the parts of a message in its own ways and renders them with the LLM's chat template. So a message that holds
sound is sent as a single part of embeddings, the text next to the sound included: vLLM only puts one thing between the
template's prefix and suffix. This module knows no network.
"""

import base64
import copy
import io
import itertools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ossicle.chat.messages import parse_conversation
from ossicle.chat.prompt_segments import AudioSegment, Frame, Segment, TextSegment
from ossicle.chat.template import ChatTemplate
from ossicle.errors import RequestError
from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError

EmbedIds: TypeAlias = Callable[[Sequence[int]], Float[Tensor, "T D"]]
"""Returns the LLM's input embeddings of some ids."""
EMBEDS_PLACEHOLDER = "<prompt_embeds>"
"""The special token that vLLM writes in place of embeddings."""
_FORWARDED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "refusal": ("refusal",),
    "thinking": ("thinking", "closed"),
    "tool_reference": ("name",),
}
"""Types of parts without sound that vLLM gets, and their fields: with other fields it may read a text as an image."""
_ROLES_WITH_JOINED_TEXT = ("system", "developer", "user", "assistant")
_OTHER_DATE = "2001-02-03"


class VllmTemplate(ChatTemplate):
    """An ear's chat template as vLLM applies it: without the ear's own system prompt.

    Args:
        date: replaces the ear's
    """

    def __init__(self, own: ChatTemplate, *, date: str | None = None) -> None:
        super().__init__(own.tokenizer, replace(own.settings, system=None, date=date or own.settings.date))

    @property
    def pinned_kwargs(self) -> dict[str, Any]:
        """The `chat_template_kwargs` with the ear's variables and date; templates that take no date ignore it."""
        return {**self.variables, "date_string": self._date_kwargs["date_string"]}

    @property
    def has_system(self) -> bool:
        """Whether the template renders system messages."""
        return "system" in self._content_forms

    @cached_property
    def placeholder_frame(self) -> Frame:
        """The ids around a user turn of vLLM's placeholder alone, which are those around a sound at vLLM."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": [EMBEDS_PLACEHOLDER]})
        rendered = self._render(self._single_audio, [EMBEDS_PLACEHOLDER])
        ids = tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        position = ids.index(tokenizer.convert_tokens_to_ids(EMBEDS_PLACEHOLDER))
        return Frame(ids[:position], ids[position + 1 :])

    @cached_property
    def n_undated(self) -> int:
        """The number of ids directly before a sound that are the same on every date."""
        other = VllmTemplate(self, date=_OTHER_DATE)
        other._date_kwargs |= self.pinned_kwargs
        from_sound = zip(reversed(self.frame.prefix), reversed(other._find_frame().prefix), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda ids: ids[0] == ids[1], from_sound))


@dataclass(frozen=True)
class PromptLayout:
    """A conversation that can be sent as soon as the audio tokens of its sounds are there."""

    messages: tuple[Any, ...]
    """The messages as they are sent, but the content of a message with sound is a tuple of segments."""
    sounds: tuple[Sound, ...]
    """In the order of the indices of the sound segments."""


class VllmPrompt:
    """Builds the messages for vLLM as the ear's own template renders them for the LLM.

    Args:
        own: the ear's template, whose system prompt is used for conversations without one
        embed_ids: returns the LLM's input embeddings
    """

    def __init__(self, own: ChatTemplate, embed_ids: EmbedIds) -> None:
        self.template = VllmTemplate(own)
        self._system, self._embed_ids = own.settings.system, embed_ids

    def lay_out(self, messages: Sequence[Any]) -> PromptLayout:
        """Returns the layout of a conversation; it checks messages with sound and leaves the others to vLLM.

        Raises:
            RequestError: sound in a message that is not the user's, a part that is neither sound nor text, or text
                next to a sound that the ear's own prompt would refuse too
        """
        system, numbered = self._split_system(messages)
        sounds: list[Sound] = []
        laid_out = []
        for i, message in numbered:
            if system and _get_role(message) == "user" and not self.template.has_system:
                message, system = _prepend_text(message, f"{system}\n\n"), None
            laid_out.append(self._lay_out_message(message, f"messages[{i}]", sounds))
        if system and self.template.has_system:
            laid_out.insert(0, {"role": "system", "content": system})
        return PromptLayout(tuple(laid_out), tuple(sounds))

    def build_messages(self, layout: PromptLayout, audio_tokens: Sequence[Float[Tensor, "_ D"]]) -> list[Any]:
        """Returns the messages with their sounds as embeddings; encoding megabytes of them takes time.

        Args:
            audio_tokens: of each of the layout's sounds
        """
        return [self._build_message(message, audio_tokens) for message in layout.messages]

    def _split_system(self, messages: Sequence[Any]) -> tuple[str | None, list[tuple[int, Any]]]:
        """Returns the system prompt that is not yet in a message, and the numbered messages."""
        numbered = list(enumerate(messages))
        first = messages[0] if messages else None
        if _get_role(first) not in ("system", "developer"):
            return self._system, numbered
        if self.template.has_system:
            return None, numbered
        content = _filter_parts(first, "messages[0]").get("content")
        return (content.strip(), numbered[1:]) if isinstance(content, str) else (None, numbered)

    def _lay_out_message(self, message: Any, where: str, sounds: list[Sound]) -> Any:
        """Returns a message of the layout, and adds its sounds to `sounds`."""
        parts = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(parts, list):
            return message
        if not any(_is_sound(part) for part in parts):
            return _filter_parts(message, where)
        if message.get("role") != "user":
            raise ApiError(
                f"{where} has the role {reprlib.repr(message.get('role'))} and holds sound, expected sound in user"
                " messages only",
                param=where,
            )
        segments = self._split_segments(parts, where)
        content = tuple(
            AudioSegment(len(sounds) + segment.index) if isinstance(segment, AudioSegment) else segment
            for segment in segments
        )
        sounds += [part["audio"] for part in parts if _is_sound(part)]
        return {**message, "content": content}

    def _split_segments(self, parts: list[Any], where: str) -> list[Segment]:
        """Returns the segments between the template's prefix and suffix, for a conversation of this message alone."""
        if len(parts) == 1:
            return [AudioSegment(0)]
        try:
            segments = list(self.template.render(parse_conversation([{"role": "user", "content": parts}])))
        except RequestError as error:
            raise ApiError(str(error).replace("messages[0]", where, 1), param=where) from error
        prefix, suffix = self.template.frame
        if not isinstance(segments[0], TextSegment):  # the template writes nothing before the content
            segments.insert(0, TextSegment(()))
        first, last = segments[0], segments[-1]
        assert isinstance(first, TextSegment)
        assert isinstance(last, TextSegment), "a template that writes nothing after a sound is refused"
        n_kept = len(last.ids) - len(suffix)
        if first.ids[: len(prefix)] != prefix or last.ids[n_kept:] != suffix:
            raise ApiError(
                f"{where}.content begins or ends with text that merges with the chat template around it, as a line"
                " break may: leave out white space at its ends, or send sound and text in separate messages",
                param=where,
            )
        segments[-1] = TextSegment(last.ids[:n_kept])
        segments[0] = TextSegment(first.ids[len(prefix) :])
        return [segment for segment in segments if segment != TextSegment(())]

    def _build_message(self, message: Any, audio_tokens: Sequence[Float[Tensor, "_ D"]]) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, tuple):
            return message
        embeds = [
            audio_tokens[segment.index]
            if isinstance(segment, AudioSegment)
            else self._embed_ids(segment.ids).to(audio_tokens[0])
            for segment in content
        ]
        return {**message, "content": [build_embeds_part(torch.cat(embeds))]}


def build_embeds_part(embeds: Float[Tensor, "T D"]) -> dict[str, str]:
    """Returns input embeddings as a part of a message, in their own dtype, which vLLM converts to the LLM's."""
    file = io.BytesIO()
    torch.save(embeds.detach().cpu().clone(), file)  # a view would save its whole storage
    return {"type": "prompt_embeds", "data": base64.b64encode(file.getvalue()).decode("ascii")}


def _get_role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _is_sound(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "audio"


def _prepend_text(message: Any, text: str) -> Any:
    """Returns a user message with text before its content."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}, *content]}
    return {**message, "content": text + content} if isinstance(content, str) else message


def _filter_parts(message: Any, where: str) -> Any:
    """Returns a message without sound as vLLM gets it; several texts become one, joined as in the ear's own prompt.

    Raises:
        ApiError: a part of another type
    """
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    forwarded = []
    for j, part in enumerate(parts):
        part_type = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part_type, str) or part_type not in _FORWARDED_FIELDS:
            raise ApiError(
                f"{where}.content[{j}] is of type {reprlib.repr(part_type)}, expected text, or sound as input_audio",
                param=f"{where}.content[{j}]",
            )
        fields = {name: part[name] for name in _FORWARDED_FIELDS[part_type] if name in part}
        forwarded.append({"type": part_type, **fields})
    texts = [part.get("text") for part in forwarded if part["type"] == "text"]
    valid = [text for text in texts if isinstance(text, str)]
    has_text_only = len(valid) == len(forwarded) and "".join(valid).strip()
    if message.get("role") in _ROLES_WITH_JOINED_TEXT and has_text_only:
        turn = parse_conversation([{"role": "user", "content": forwarded}]).turns[0]
        return {**message, "content": "".join(map(str, turn.content))}
    return {**message, "content": forwarded}
