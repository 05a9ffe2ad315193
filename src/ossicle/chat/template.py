"""A chat template split around sound: the ids before, between and after audio tokens.

It knows Hugging Face chat templates and tokenizers, and no model family: everything is found by rendering the
template around probe words and comparing ids. It does not know what sound is: here it is a placeholder in a text.
"""

import functools
import itertools
import json
import operator
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ossicle.chat.messages import Conversation, Turn
from ossicle.chat.prompt_segments import (
    PROBES,
    AudioSegment,
    Frame,
    Ids,
    Segment,
    SplitPrompt,
    TextSegment,
    count_common_prefix,
    count_common_suffix,
    cut_out_audio,
    merge_segments,
)
from ossicle.chat.tool_calls import (
    PROBE_CALL,
    PROBE_DESCRIPTION,
    PROBE_TOOL,
    ToolFormat,
    build_template_call,
    find_tool_format,
    shorten_call_id,
)
from ossicle.config import RESERVED_VARIABLES, PromptSettings, parse_template_variables
from ossicle.errors import CheckpointError, ConfigError, DataError, OssicleError, RequestError

_MAX_VARIANTS, _MAX_VARIABLE_CHARACTERS = 8, 1_000
"""Sets of variables whose templates are kept, and their size."""
_SURROGATES = re.compile("[\ud800-\udfff]")
# Shadows the renderer's own strftime_now, which reads the clock; a function could not be passed in.
_PINNED_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set parts = format.split('%') -%}{{- parts[0] -}}"
    "{%- for part in parts[1:] -%}{%- set n = 2 if part.startswith('-') else 1 -%}"
    "{{- pinned_date.get(part[:n], '%' + part[:n]) + part[n:] -}}"
    "{%- endfor -%}{%- endmacro %}\n"
)


class ChatTemplate:
    """A tokenizer's chat template, with its date pinned, as constant ids around sound.

    A template without a system role (it raises, or leaves the text out) gets the system text at the head of
    the first user message, with an empty line in between; one that has it only at the start gets later system texts at
    the head of the next user message, or at the end of the last one. Control tokens in a text or transcript are
    refused: the LLM would take them for the end of the turn, or for another speaker.

    Raises:
        CheckpointError: the tokenizer has no chat template, or one that cannot be split around sound
        ConfigError: the system prompt of the settings holds a control token
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._variants: dict[tuple[str, ...], ChatTemplate] = {}
        name = f"the tokenizer {tokenizer.name_or_path!r}"
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise CheckpointError(
                f"{name} has no chat template: use the chat version of the model"
            ) from error
        self._template = _PINNED_CLOCK + template if "strftime_now" in template else template
        self._date_kwargs = _build_date_kwargs(settings.date)
        self.variables = parse_template_variables(settings.template_variables or ())
        """Variables of the template that the settings give."""
        try:
            self._content_forms = self._find_content_forms()
            self._has_late_system = self._find_late_system()
            self._control_tokens = self._find_control_tokens(template)
            self._refuse_control_tokens("system", settings.system or "", "prompt.system", ConfigError)
            self._single_audio = self._place_system(Conversation((Turn("user", (0,)),), ("a sound",)))
            self.frame = self._find_frame()
            """The constant ids around a single sound, the generation prompt included."""
        except RequestError as error:
            raise CheckpointError(f"the chat template of {name} cannot be used: {error}") from error

    def find_effort_variables(self, effort: Any) -> dict[str, Any] | None:
        """Returns the template's variables for an effort of reasoning, such as "low"; None where it has none for it.

        Templates name it `reasoning_effort`, or `enable_thinking`, which "none" switches off.
        """
        if not isinstance(effort, str):
            return None
        source = str(self.tokenizer.chat_template)
        if re.search(r"\breasoning_effort\b", source):
            return {"reasoning_effort": effort}
        if re.search(r"\benable_thinking\b", source):
            return {"enable_thinking": effort != "none"}
        return {} if effort == "none" else None

    def with_variables(self, variables: Any) -> "ChatTemplate":
        """Returns the template with further variables, as requests name them in `chat_template_kwargs`.

        Raises:
            RequestError: no names with values, or variables that the template cannot be rendered with
        """
        if variables is None or variables == {}:
            return self
        is_valid = (
            isinstance(variables, Mapping)
            and all(isinstance(name, str) and name.isidentifier() for name in variables)
            and not RESERVED_VARIABLES & variables.keys()
            and all(isinstance(value, str | bool | int | float | None) for value in variables.values())
            and sum(len(f"{name}{value}") for name, value in variables.items()) <= _MAX_VARIABLE_CHARACTERS
        )
        if not is_valid:
            raise RequestError(
                f"chat_template_kwargs is {reprlib.repr(variables)}, expected a table of the template's variables, such"
                " as enable_thinking: false"
            )
        for value in variables.values():
            if isinstance(value, str):
                self._refuse_control_tokens("user", value, "chat_template_kwargs", RequestError)
        own = {**self.variables, **variables}
        texts = tuple(f"{name}={json.dumps(value)}" for name, value in own.items())
        key = tuple(sorted(texts))
        if key not in self._variants:
            if len(self._variants) >= _MAX_VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            settings = replace(self.settings, template_variables=texts)
            try:
                self._variants[key] = ChatTemplate(self.tokenizer, settings)
            except CheckpointError as error:
                raise RequestError(f"chat_template_kwargs cannot be used: {error}") from error
        return self._variants[key]

    def split_prompt(self, text: str) -> SplitPrompt:
        """Returns the ids of a user turn that is only `text`, split around it; joined, those of apply_chat_template.

        White space around the text is dropped first, as many templates do.

        Raises:
            DataError: the text holds a control token
        """
        ids = self._encode(self._render(self._single_audio, self._check_transcripts([text], 1)))
        n_prefix = count_common_prefix(ids, self.frame.prefix)
        stop = len(ids) - count_common_suffix(ids[n_prefix:], self.frame.suffix)
        prefix, suffix = ids[:n_prefix], ids[stop:]
        return SplitPrompt(prefix, ids[n_prefix:stop], suffix, is_framed=(prefix, suffix) == self.frame)

    def render(
        self, conversation: Conversation, transcripts: Sequence[str] | None = None
    ) -> tuple[Segment, ...]:
        """Returns a conversation as text and audio segments, ready for the LLM's answer.

        The ids around a sound are those that are there whatever is said: around a single one, `frame`. With
        transcripts, each audio segment carries its ids, and all ids in order are those of `tokenize`.

        Raises:
            RequestError: a message holds a control token, or the template does not accept the messages
            DataError: not one transcript for each sound, or a transcript that holds a control token
        """
        n_sounds = len(conversation.sounds)
        if n_sounds and transcripts is None:
            return self.cut(self.render_literals(conversation))
        turns, texts = self._place_system(conversation), self._check_transcripts(transcripts or (), n_sounds)
        tools = self._check_tools(conversation)
        return merge_segments(
            cut_out_audio(lambda fills: self._encode(self._render(turns, fills, tools)), texts)
        )

    def render_literals(self, conversation: Conversation) -> list[str]:
        """Returns the text of a conversation, ready for the LLM's answer, before, between and after its sounds.

        Raises:
            RequestError: a message holds a control token, or the template does not accept the messages
        """
        turns, tools = self._place_system(conversation), self._check_tools(conversation)
        return self._render_literals(turns, len(conversation.sounds), tools)

    def cut(self, literals: Sequence[str]) -> tuple[Segment, ...]:
        """Returns the segments of a text that was rendered around sounds; see `render`."""
        if len(literals) == 1:
            return (TextSegment(self._encode(literals[0])),)
        return merge_segments(self._cut_out_probes(list(literals)))

    def tokenize(self, conversation: Conversation, transcripts: Sequence[str] = ()) -> Ids:
        """Returns the ids of a conversation with a transcript in place of each sound: those of apply_chat_template.

        Raises:
            RequestError: a message holds a control token, or the template does not accept the messages
            DataError: not one transcript for each sound, or a transcript that holds a control token
        """
        turns = self._place_system(conversation)
        texts = self._check_transcripts(transcripts, len(conversation.sounds))
        return self._encode(self._render(turns, texts, self._check_tools(conversation)))

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """The form in which the template writes calls of functions; None if it takes no functions or no known form."""
        user, result = Turn("user", ("a",)), Turn("tool", (_name_placeholder(0),), call_id=PROBE_CALL.id)
        turns = [user, Turn("assistant", (), (PROBE_CALL,)), result]
        try:
            rendered = self._render(turns, (), (PROBE_TOOL,))
        except RequestError:
            return None
        is_shown = PROBE_DESCRIPTION in rendered and _name_placeholder(0) in rendered
        return find_tool_format(rendered) if is_shown else None

    def _check_tools(self, conversation: Conversation) -> tuple[Mapping[str, Any], ...]:
        """Returns the functions of a conversation.

        Raises:
            RequestError: the template cannot show them, or they hold a control token
        """
        uses_tools = conversation.tools or any(
            turn.calls or turn.role == "tool" for turn in conversation.turns
        )
        if uses_tools and self.tool_format is None:
            raise RequestError(
                "the LLM's chat template has no functions, or writes their calls in a form that is not known: leave out"
                " tools and their messages"
            )
        for turn in conversation.turns:
            for call in turn.calls:
                self._refuse_control_tokens(
                    "user", json.dumps(call[1:], ensure_ascii=False), "messages: tool_calls", RequestError
                )
        if conversation.tools:
            text = json.dumps(conversation.tools, ensure_ascii=False)
            self._refuse_control_tokens("user", text, "tools", RequestError)
        return conversation.tools

    def _place_system(self, conversation: Conversation) -> list[Turn]:
        """Returns the turns, with the system text where the template shows it, after a check for control tokens."""
        turns = list(conversation.turns)
        for i, (role, content, *_) in enumerate(turns):
            text = "".join(part if isinstance(part, str) else "\n" for part in content)
            self._refuse_control_tokens(role, text, f"messages[{i}].content", RequestError)
        if turns[0].role != "system" and self.settings.system is not None:
            turns.insert(0, Turn("system", (self.settings.system,)))
        if not self._has_late_system:
            turns = _merge_late_system(turns)
        if turns[0].role == "system" and "system" not in self._content_forms:
            system = "".join(map(str, turns.pop(0).content)).strip()
            if system:
                first = _find_user_turns(turns)[0]
                turns[first] = Turn("user", (f"{system}\n\n", *turns[first].content))
        return turns

    def _check_transcripts(self, transcripts: Sequence[str], n_sounds: int) -> tuple[str, ...]:
        if len(transcripts) != n_sounds:
            raise DataError(f"{len(transcripts)} transcripts for {n_sounds} sounds, expected one for each")
        for text in transcripts:
            self._refuse_control_tokens("user", text, f"the transcript {reprlib.repr(text)}", DataError)
        return tuple(text.strip() for text in transcripts)

    def _refuse_control_tokens(self, role: str, text: str, where: str, error: type[OssicleError]) -> None:
        if found := _SURROGATES.search(text):
            raise error(f"{where} is not valid Unicode: it has a lone {found.group()!r}; write it in UTF-8")
        if found := self._control_tokens[role].search(text):
            raise error(
                f"{where} holds {found.group()!r}, a control token of the LLM, which could end the turn or "
                "speak for somebody else: remove it, or write it another way"
            )

    def _encode(self, rendered: str) -> Ids:
        # The template writes BOS itself where the model expects one; the tokenizer must not add another.
        return tuple(self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])

    def _render(
        self, turns: Sequence[Turn], fills: Sequence[str], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Returns the text of a conversation, generation prompt included, with `fills` in place of its sounds."""
        messages = []
        for turn in turns:
            form = self._content_forms.get("assistant" if turn.role == "tool" else turn.role)
            if form is None:
                raise RequestError(f"the chat template shows no {turn.role} messages: leave them out")
            text = "".join(fills[part] if isinstance(part, int) else part for part in turn.content)
            message: dict[str, Any] = {"role": turn.role, "content": form(text)}
            if turn.calls:
                message["tool_calls"] = [build_template_call(call) for call in turn.calls]
            if turn.role == "tool":
                message["tool_call_id"] = shorten_call_id(turn.call_id)
            messages.append(message)
        return self._apply(messages, tools)

    def _apply(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
        if tools:
            options["tools"] = list(tools)
        options |= {**self.variables, **self._date_kwargs}
        try:
            return str(self.tokenizer.apply_chat_template(messages, chat_template=self._template, **options))
        except Exception as error:  # a template is a program
            raise RequestError(f"the chat template refuses these messages: {error}") from error

    def _find_content_forms(self) -> dict[str, Callable[[str], Any]]:
        """Returns, for each role that the template has, whether it reads a string or a list of parts."""
        forms: dict[str, Callable[[str], Any]] = {}

        def is_shown(role: str, form: Callable[[str], Any]) -> bool:
            message = {"role": role, "content": form(_name_placeholder(0))}
            user = {"role": "user", "content": forms.get("user", form)("a")}
            talk = {"user": [message], "system": [message, user], "assistant": [user, message, user]}
            try:
                return self._apply(talk[role]).count(_name_placeholder(0)) == 1
            except RequestError:
                return False

        for role, form in itertools.product(("user", "system", "assistant"), (_to_string, _to_parts)):
            if role not in forms and is_shown(role, form):
                forms[role] = form
        if "user" not in forms:
            # If the template refuses the message, this raises its own reason.
            self._apply([{"role": "user", "content": "a"}])
            raise RequestError("it leaves out what the user says")
        return forms

    def _find_late_system(self) -> bool:
        """Whether the template shows system messages between the others and after the last one."""
        if "system" not in self._content_forms:
            return False
        user, system = Turn("user", ("a",)), Turn("system", (_name_placeholder(0),))
        try:
            return all(
                self._render(turns, ()).count(_name_placeholder(0)) == 1
                for turns in ([user, system], [user, Turn("assistant", ("b",)), system, user])
            )
        except RequestError:
            return False

    def _find_control_tokens(self, template: str) -> dict[str, re.Pattern[str]]:
        """Returns what texts may not hold: special tokens and, for users, any added token that the template writes."""
        written = template + self._render([Turn("user", ("a",))], ())
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        # "!" may be said, even where it serves as padding.
        special = {token for token in special if len(token) > 1}
        # A token that is a plain word, or only white space, is no more than any other text.
        markup = {token.content for token in added if re.search(r"\w[^\w\s]|[^\w\s]\w", token.content)}
        control = special | {token for token in markup if token in written}
        return {
            "system": _compile_any_of(special),
            "tool": _compile_any_of(control),
            "assistant": _compile_any_of(special),
            "user": _compile_any_of(control),
        }

    def _find_frame(self) -> Frame:
        before, after = self._render_literals(self._single_audio, 1)
        rows = [self._encode(f"{before}{probe}{after}") for probe in PROBES]
        n_prefix, n_suffix = count_common_prefix(*rows), count_common_suffix(*rows)
        if n_prefix > len(self._encode(before)) or n_suffix > len(self._encode(after)):
            raise RequestError("the tokenizer knows too few words to distinguish them")
        if not n_suffix:
            raise RequestError("it writes nothing after what the user says, so nothing asks for an answer")
        return Frame(rows[0][:n_prefix], rows[0][-n_suffix:])

    def _render_literals(
        self, turns: Sequence[Turn], n_sounds: int, tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[str]:
        """Returns the rendered text before, between and after the sounds."""
        rest = self._render(turns, [_name_placeholder(i) for i in range(n_sounds)], tools)
        literals = []
        for i in range(n_sounds):
            literal, found, rest = rest.partition(_name_placeholder(i))
            if not found or _name_placeholder(i) in rest:
                raise RequestError(
                    f"the chat template drops or repeats sound {i + 1} of {n_sounds}: send fewer turns"
                )
            literals.append(literal)
        return [*literals, rest]

    def _cut_out_probes(self, literals: list[str]) -> list[Segment]:
        """Returns the segments of a conversation whose sounds are probes.

        Each stretch between control tokens is cut by itself: linear, not quadratic, in the number of turns.
        """
        encode = functools.cache(self._encode)
        islands = self._split_at_control_tokens(literals)
        for probe in PROBES:
            separate = itertools.chain.from_iterable(encode(probe.join(island)) for island in islands)
            if tuple(separate) != encode(probe.join(literals)):  # the tokenizer merges across turns
                islands = [literals]
                break
        segments: list[Segment] = []
        for island in islands:

            def encode_island(fills: Sequence[str], island: list[str] = island) -> Ids:
                return encode("".join(map(operator.add, island, (*fills, ""))))

            segments += cut_out_audio(encode_island, PROBES[:1] * (len(island) - 1))
        index = itertools.count()
        return [
            segment if isinstance(segment, TextSegment) else AudioSegment(next(index)) for segment in segments
        ]

    def _split_at_control_tokens(self, literals: list[str]) -> list[list[str]]:
        """Returns the literals grouped into stretches that begin at a control token."""
        islands = [[literals[0]]]
        for literal in literals[1:-1]:
            starts = [found.start() for found in self._control_tokens["user"].finditer(literal)]
            cut = starts[-1] if starts else len(literal)
            islands[-1].append(literal[:cut])
            if starts:
                islands.append([literal[cut:]])
        islands[-1].append(literals[-1])
        return islands


def _merge_late_system(turns: Sequence[Turn]) -> list[Turn]:
    """Returns the turns with at most one of the system, at the start; the texts of later ones join a user's turn."""
    merged: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        role, content, *_ = turn
        if role == "system" and merged and any(content):
            waiting.append("".join(map(str, content)).strip())
        elif role == "user" and waiting:
            merged.append(Turn("user", ("\n\n".join([*waiting, ""]), *content)))
            waiting = []
        elif role != "system" or not merged:
            merged.append(turn)
    if waiting:
        last = _find_user_turns(merged)[-1]
        merged[last] = Turn("user", (*merged[last].content, "\n\n".join(["", *waiting])))
    return merged


def _find_user_turns(turns: Sequence[Turn]) -> list[int]:
    """Returns the numbers of the turns of the user, which a system text joins where the template has no other place.

    Raises:
        RequestError: there is none
    """
    found = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not found:
        raise RequestError(
            "messages: there is none of the user, where alone this LLM's chat template shows a system message; add one"
        )
    return found


def _name_placeholder(index: int) -> str:
    """Returns a word that does not occur in texts, in place of a sound while a template is rendered."""
    return f"qx7sound{index}7xq"


def _compile_any_of(tokens: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _build_date_kwargs(iso_date: str) -> dict[str, Any]:
    """Returns the date for templates: as the variable of Llama's, and for all others through the pinned clock."""
    day = datetime.fromisoformat(iso_date)
    padded = {letter: day.strftime(f"%{letter}") for letter in "aAbBcdDeFHIjmMpSTuUwWxXyYZ"}
    plain = {f"-{letter}": padded[letter].lstrip("0") or "0" for letter in "dmHIMSj"}
    return {"date_string": day.strftime("%d %b %Y"), "pinned_date": padded | plain}


def _to_string(text: str) -> str:
    return text


def _to_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
