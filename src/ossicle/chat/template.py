"""A chat template split around sound: which ids come before, between and after what is heard.

Knows Hugging Face chat templates and tokenizers, and no model family: everything is found by rendering the
template around probe words and comparing ids. Refuses to know what sound is: here it is a slot in a text.

One rule: ids that are there whatever is said belong to the template, all others to what is said. So a space
that merges into a word ("[INST] Hello": "[INST]", "▁Hello") goes with the word, and what surrounds a sound is
a constant, the same in training, in caches and at inference.
"""

import functools
import itertools
import operator
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ossicle.chat.messages import Turn, parse_conversation
from ossicle.config import PromptSettings
from ossicle.errors import CheckpointError, ConfigError, DataError, OssicleError, RequestError

Ids: TypeAlias = tuple[int, ...]

PROBES = (
    *("hello", "The end.", "7", "Why?", '"Yes"', "(no)", "-5%", "'tis so!"),
    *("école…", "好。", "$a:", "#b;", "¿c,", "It's 10'"),
)
"""What may be said, as far as a tokenizer cares: first and last characters that merge in different ways."""

_SURROGATES = re.compile("[\ud800-\udfff]")
# Shadows the renderer's own strftime_now, which reads the clock; a function could not be passed in.
_PINNED_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set parts = format.split('%') -%}{{- parts[0] -}}"
    "{%- for part in parts[1:] -%}{%- set n = 2 if part.startswith('-') else 1 -%}"
    "{{- pinned_date.get(part[:n], '%' + part[:n]) + part[n:] -}}"
    "{%- endfor -%}{%- endmacro %}\n"
)


@dataclass(frozen=True)
class SplitPrompt:
    """The prompt of a user turn that is one text; prefix + text + suffix is the whole of it."""

    prefix: Ids
    text: Ids
    suffix: Ids
    is_framed: bool
    """Whether prefix and suffix are the template's constant frame. If not, this text merges with a neighbour
    as no probe does: the merged ids are in `text`, and prefix or suffix is shorter than the frame's."""


class Frame(NamedTuple):
    """The constant ids around a single sound."""

    prefix: Ids
    suffix: Ids


@dataclass(frozen=True)
class TextSegment:
    """Ids that the LLM reads."""

    ids: Ids


@dataclass(frozen=True)
class AudioSegment:
    """A place where the LLM hears: the sound's number, and the ids of its transcript where that is known."""

    index: int
    transcript_ids: Ids = ()


Segment: TypeAlias = TextSegment | AudioSegment


class ChatTemplate:
    """A tokenizer's chat template, its date pinned, as constant ids around sound.

    A template without a system role (it raises, or leaves the text out) gets the system text at the head of
    the first user message, an empty line between. Control tokens in a text or transcript are refused: the LLM
    would take them for the end of the turn, or for another speaker.

    Raises:
        CheckpointError: The tokenizer has no chat template, or one that cannot be split around sound.
        ConfigError: The system prompt of the settings holds a control token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        name = f"the tokenizer {tokenizer.name_or_path!r}"
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise CheckpointError(f"{name} has no chat template: take the model's chat version") from error
        self._template = _PINNED_CLOCK + template if "strftime_now" in template else template
        self._date = _pinned_date(settings.date)
        try:
            self._forms = self._find_forms()
            self._control = self._find_control_tokens(template)
            self._refuse_control("system", settings.system or "", "prompt.system", ConfigError)
            one_sound = {"role": "user", "content": [{"type": "audio", "audio": "a sound"}]}
            self._one_sound, _ = self._read([one_sound])
            self.frame = self._find_frame()
            """The constant ids around a single sound, the generation prompt included."""
        except RequestError as error:
            raise CheckpointError(f"the chat template of {name} cannot be used: {error}") from error

    def split_prompt(self, text: str) -> SplitPrompt:
        """Split the prompt of a user turn that is only `text`: joined, the ids of apply_chat_template.

        White space around the text is dropped first, as many templates do.

        Raises:
            DataError: The text holds a control token.
        """
        ids = self._encode(self._render(self._one_sound, self._checked([text], 1)))
        n_prefix = _n_common(ids, self.frame.prefix)
        stop = len(ids) - _n_common_last(ids[n_prefix:], self.frame.suffix)
        prefix, suffix = ids[:n_prefix], ids[stop:]
        return SplitPrompt(prefix, ids[n_prefix:stop], suffix, is_framed=(prefix, suffix) == self.frame)

    def render(self, messages: Any, texts: Sequence[str] | None = None) -> tuple[Segment, ...]:
        """Lay out a conversation as ids to read and sounds to hear, ready for the LLM's answer.

        Around a sound stand the ids that are there whatever is said: around a single one, `frame`. The parts
        of a message are joined by one space, unless there is white space already. With `texts`, the
        transcripts, each sound carries its ids, and all ids in order are those of `text_ids`.

        Raises:
            RequestError: The messages are malformed, or the template does not take them.
            DataError: Not one text for each sound, or a text that holds a control token.
        """
        turns, n_sounds = self._read(messages)
        if n_sounds and texts is None:
            return _merged(self._around_words(self._literals(turns, n_sounds)))
        texts = self._checked(texts or (), n_sounds)
        return _merged(_cut_out(lambda fills: self._encode(self._render(turns, fills)), texts))

    def tokenize(self, messages: Any, transcripts: Sequence[str] = ()) -> Ids:
        """Ids of a conversation with a transcript in place of each sound: those of apply_chat_template.

        Raises:
            RequestError: The messages are malformed, or the template does not take them.
            DataError: Not one transcript for each sound, or a transcript that holds a control token.
        """
        turns, n_sounds = self._read(messages)
        return self._encode(self._render(turns, self._checked(transcripts, n_sounds)))

    def _read(self, messages: Any) -> tuple[list[Turn], int]:
        """Check messages and give the system text its place: the turns, and how many sounds they hold."""
        conversation = parse_conversation(messages)
        turns = list(conversation.turns)
        for i, (role, content) in enumerate(turns):
            text = "".join(part if isinstance(part, str) else "\n" for part in content)
            self._refuse_control(role, text, f"messages[{i}].content", RequestError)
        if turns[0].role != "system" and self.settings.system is not None:
            turns.insert(0, Turn("system", (self.settings.system,)))
        if turns[0].role == "system" and "system" not in self._forms:
            system = "".join(map(str, turns.pop(0).content)).strip()
            first = next(i for i, turn in enumerate(turns) if turn.role == "user")
            if system:
                turns[first] = Turn("user", (f"{system}\n\n", *turns[first].content))
        return turns, len(conversation.sounds)

    def _checked(self, texts: Sequence[str], n_sounds: int) -> tuple[str, ...]:
        if len(texts) != n_sounds:
            raise DataError(f"{len(texts)} transcripts for {n_sounds} sounds, expected one for each")
        for text in texts:
            self._refuse_control("user", text, f"the transcript {reprlib.repr(text)}", DataError)
        return tuple(text.strip() for text in texts)

    def _refuse_control(self, role: str, text: str, where: str, error: type[OssicleError]) -> None:
        if found := _SURROGATES.search(text):
            raise error(f"{where} is not valid Unicode: it has a lone {found.group()!r}; write it in UTF-8")
        if found := self._control[role].search(text):
            raise error(
                f"{where} holds {found.group()!r}, a control token of the LLM, which could end the turn or "
                "speak for somebody else: remove it, or write it another way"
            )

    def _encode(self, rendered: str) -> Ids:
        # The template writes BOS itself where the model wants one; the tokenizer must not add another.
        return tuple(self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])

    def _render(self, turns: Sequence[Turn], fills: Sequence[str]) -> str:
        """Write a conversation out, the generation prompt included, with `fills` in place of its sounds."""
        messages = []
        for role, content in turns:
            if role not in self._forms:
                raise RequestError(f"the chat template shows no {role} messages: leave them out")
            text = "".join(fills[part] if isinstance(part, int) else part for part in content)
            messages.append({"role": role, "content": self._forms[role](text)})
        return self._apply(messages)

    def _apply(self, messages: list[dict[str, Any]]) -> str:
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False, **self._date}
        try:
            return str(self.tokenizer.apply_chat_template(messages, chat_template=self._template, **options))
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"the chat template refuses these messages: {error}") from error

    def _find_forms(self) -> dict[str, Callable[[str], Any]]:
        """Find for each role whether the template reads a string or a list of parts, if it has the role."""
        forms: dict[str, Callable[[str], Any]] = {}

        def is_shown(role: str, form: Callable[[str], Any]) -> bool:
            message = {"role": role, "content": form(_slot(0))}
            user = {"role": "user", "content": forms.get("user", form)("a")}
            talk = {"user": [message], "system": [message, user], "assistant": [user, message, user]}
            try:
                return self._apply(talk[role]).count(_slot(0)) == 1
            except RequestError:
                return False

        for role, form in itertools.product(("user", "system", "assistant"), (_as_string, _as_parts)):
            if role not in forms and is_shown(role, form):
                forms[role] = form
        if "user" not in forms:
            # If the template minds something, it says so itself.
            self._apply([{"role": "user", "content": "a"}])
            raise RequestError("it leaves out what the user says")
        return forms

    def _find_control_tokens(self, template: str) -> dict[str, re.Pattern[str]]:
        """Find what no text may hold: special tokens, and from users any token that the template writes."""
        written = template + self._render([Turn("user", ("a",))], ())
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        special = {
            token for token in special if len(token) > 1
        }  # "!" may be said, even where it is for padding
        # Nor is a token that is a plain word, or only white space, more than any other text.
        marks = {token.content for token in added if re.search(r"\w[^\w\s]|[^\w\s]\w", token.content)}
        control = special | {token for token in marks if token in written}
        return {"system": _any_of(special), "assistant": _any_of(special), "user": _any_of(control)}

    def _find_frame(self) -> Frame:
        before, after = self._literals(self._one_sound, 1)
        rows = [self._encode(f"{before}{probe}{after}") for probe in PROBES]
        n_prefix, n_suffix = _n_common(*rows), _n_common_last(*rows)
        if n_prefix > len(self._encode(before)) or n_suffix > len(self._encode(after)):
            raise RequestError("the tokenizer knows too few words to tell them apart")
        if not n_suffix:
            raise RequestError("it writes nothing after what the user says, so nothing asks for an answer")
        return Frame(rows[0][:n_prefix], rows[0][-n_suffix:])

    def _literals(self, turns: Sequence[Turn], n_sounds: int) -> list[str]:
        """Render the text before, between and after the sounds."""
        rest = self._render(turns, [_slot(i) for i in range(n_sounds)])
        literals = []
        for i in range(n_sounds):
            literal, found, rest = rest.partition(_slot(i))
            if not found or _slot(i) in rest:
                raise RequestError(
                    f"the chat template drops or repeats sound {i + 1} of {n_sounds}: send fewer turns"
                )
            literals.append(literal)
        return [*literals, rest]

    def _around_words(self, literals: list[str]) -> list[Segment]:
        """Cut the sounds out, varying each in its own turn: linear, not quadratic, in the number of turns."""
        encode = functools.cache(self._encode)
        islands = [[literals[0]]]
        for literal in literals[1:-1]:
            tokens = [found.start() for found in self._control["user"].finditer(literal)]
            cut = tokens[-1] if tokens else len(literal)
            islands[-1].append(literal[:cut])
            if tokens:
                islands.append([literal[cut:]])
        islands[-1].append(literals[-1])
        for probe in PROBES:
            apart = itertools.chain.from_iterable(encode(probe.join(island)) for island in islands)
            if tuple(apart) != encode(probe.join(literals)):  # the tokenizer looks across the turns' borders
                islands = [literals]
                break
        pieces: list[Segment] = []
        for island in islands:

            def encode_island(fills: Sequence[str], island: list[str] = island) -> Ids:
                return encode("".join(map(operator.add, island, (*fills, ""))))

            pieces += _cut_out(encode_island, PROBES[:1] * (len(island) - 1))
        index = itertools.count()
        return [piece if isinstance(piece, TextSegment) else AudioSegment(next(index)) for piece in pieces]


def _cut_out(encode: Callable[[Sequence[str]], Ids], fills: Sequence[str]) -> list[Segment]:
    """Cut each fill's ids out of the whole: from the first to the last that change with what is said."""
    ids = encode(fills)
    pieces: list[Segment] = []
    done = 0
    for i in range(len(fills)):
        rows = [ids, *(encode((*fills[:i], probe, *fills[i + 1 :])) for probe in PROBES)]
        start = max(done, _n_common(*rows))
        stop = max(start, len(ids) - _n_common_last(*rows))
        pieces += [TextSegment(ids[done:start]), AudioSegment(i, ids[start:stop])]
        done = stop
    return [*pieces, TextSegment(ids[done:])]


def _merged(pieces: Sequence[Segment]) -> tuple[Segment, ...]:
    """Join neighbouring texts and drop empty ones."""
    merged: list[Segment] = []
    for piece in pieces:
        if isinstance(piece, TextSegment) and merged and isinstance(merged[-1], TextSegment):
            merged[-1] = TextSegment(merged[-1].ids + piece.ids)
        elif piece != TextSegment(()):
            merged.append(piece)
    return tuple(merged)


def _n_common(*rows: Ids) -> int:
    """Count the ids that all rows begin with."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _n_common_last(*rows: Ids) -> int:
    """Count the ids that all rows end with."""
    return _n_common(*(row[::-1] for row in rows))


def _slot(index: int) -> str:
    """Name a word that nobody writes, to stand for a sound while a template is rendered."""
    return f"qx7sound{index}7xq"


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _pinned_date(iso_date: str) -> dict[str, Any]:
    """Give templates their date: Llama's by the name it has there, all others through the pinned clock."""
    day = datetime.fromisoformat(iso_date)
    padded = {letter: day.strftime(f"%{letter}") for letter in "aAbBcdDeFHIjmMpSTuUwWxXyYZ"}
    plain = {f"-{letter}": padded[letter].lstrip("0") or "0" for letter in "dmHIMSj"}
    return {"date_string": day.strftime("%d %b %Y"), "pinned_date": padded | plain}


def _as_string(text: str) -> str:
    return text


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
