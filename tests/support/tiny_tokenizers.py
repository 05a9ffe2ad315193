"""Tiny real tokenizers with chat templates in the shapes met in the wild, built offline in milliseconds.

Named for the family whose shape they have: how text is cut, who adds BOS, what templates write and refuse.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "the cat sat on the mat. what is the capital of france? paris! answer in spanish, please.",
    "Hello there, how are you today? The old man said: yes. (No, he did not.) It's five o'clock.",
    "system user assistant model\n\nYou are a helpful assistant.\nToday Date: Knowledge human bot end start",
    "USER: hello ASSISTANT: hi there USER: why? ASSISTANT: because. ?< .< !< o< |user| <|end|> user\n\n",
] * 20
VOCAB_SIZE = 640

GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_bpe(words: str | None = GPT4_WORDS) -> Tokenizer:
    """Bytes as the alphabet; cut into words first, or, for the worst merges, not at all."""
    tokenizer = Tokenizer(models.BPE())
    cut = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cut, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def metaspace_bpe(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """Spaces written as "▁" and unknown characters as bytes, as converted from sentencepiece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # for training; words do not merge with each other
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=["<unk>", *bytes_, "▁"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    plain = Tokenizer(tokenizer.model)  # without the byte tokens as added ones
    if normalizer is not None:
        plain.normalizer = normalizer
    if pre_tokenizer is not None:
        plain.pre_tokenizer = pre_tokenizer
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return plain


def llama2_bpe() -> Tokenizer:
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return metaspace_bpe(spaces, None)


def mistral_bpe() -> Tokenizer:
    return metaspace_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def gemma_bpe() -> Tokenizer:
    return metaspace_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """Lets the tokenizer add BOS by itself: twice, if the template writes it, too."""
    bos_id = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, bos_id)]
    )
    return tokenizer


class CharacterTokenizer(PreTrainedTokenizer):
    """A slow tokenizer: no Rust, no offsets, one token a character."""

    def __init__(self, **kwargs: Any) -> None:
        self._characters = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95, "<unk>": 96}
        super().__init__(unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._characters)

    def get_vocab(self) -> dict[str, int]:
        return {**self._characters, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._characters.get(token, 96)

    def _convert_id_to_token(self, index: int) -> str:
        return {index: token for token, index in self._characters.items()}[index]


LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- set system_text = "" %}
{%- set talk = messages %}
{%- if messages[0].role == "system" %}
    {%- set system_text = messages[0].content | trim %}
    {%- set talk = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" + system_text + "<|eot_id|>" }}
{%- for message in talk %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" }}
    {{- message.content | trim }}
    {{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- endif %}
"""

CHATML_TURNS = """{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" }}
{%- endif %}
"""

QWEN2 = (
    """{%- if messages[0].role != "system" %}
    {{- "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" }}
{%- endif %}
"""
    + CHATML_TURNS
)

QWEN3 = """{%- set seen = namespace(last_question=-1) %}
{%- for message in messages %}
    {%- if message.role == "user" and not message.content.startswith("<tool_response>") %}
        {%- set seen.last_question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else "" %}
    {%- if message.role == "assistant" and "</think>" in content %}
        {%- set thought = content.split("</think>")[0].split("<think>")[-1].strip("\n") %}
        {%- set content = content.split("</think>")[-1].lstrip("\n") %}
        {%- if loop.index0 > seen.last_question %}
            {%- set content = "<think>\n" + thought + "\n</think>\n\n" + content %}
        {%- endif %}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\n\n</think>\n\n" }}
    {%- endif %}
{%- endif %}
"""

ALTERNATING = """{%- for message in talk %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
{%- endfor %}
"""

MISTRAL = (
    """{%- set talk = messages %}
{%- if messages[0].role == "system" %}
    {%- set system_text = messages[0].content %}
    {%- set talk = messages[1:] %}
{%- endif %}
{{- bos_token }}
"""
    + ALTERNATING
    + """{%- for message in talk %}
    {%- if message.role == "user" %}
        {%- if loop.last and system_text is defined %}
            {{- "[INST] " + system_text + "\n\n" + message.content + " [/INST]" }}
        {%- else %}
            {{- "[INST] " + message.content + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)

MISTRAL_SMALL = (
    """{%- set today = strftime_now("%Y-%m-%d") %}
{{- bos_token }}
{%- if messages[0].role == "system" %}
    {%- set system_text = messages[0].content if messages[0].content is string else messages[0].content[0].text %}
    {%- set talk = messages[1:] %}
{%- else %}
    {%- set system_text = "You are a model.\\nToday is " + today + " (" + strftime_now('%A, %B %-d') + ")." %}
    {%- set talk = messages %}
{%- endif %}
{{- "[SYSTEM_PROMPT]" + system_text + "[/SYSTEM_PROMPT]" }}
"""
    + ALTERNATING
    + """{%- for message in talk %}
    {%- if message.role == "user" %}
        {{- "[INST]" + message.content + "[/INST]" }}
    {%- else %}
        {{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
    {{ raise_exception('System role not supported') }}
{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set who = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + who + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""

PHI3 = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
"""

PHI4 = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}
"""

PARTS_ONLY = """{{- bos_token }}
{%- for message in messages %}
    {{- message.role | capitalize + ":" }}
    {%- for part in message.content %}
        {%- if part.type == "text" %}
            {{- " " + part.text }}
        {%- endif %}
    {%- endfor %}
    {{- "<end_of_utterance>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "Assistant:" }}
{%- endif %}
"""

PLAIN = """{%- if messages[0].role == "system" %}{{- messages[0].content + " " }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "USER: " + message.content + " " }}
    {%- elif message.role == "assistant" %}
        {{- "ASSISTANT: " + message.content + "</s>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "ASSISTANT:" }}
{%- endif %}
"""

TIGHT = """{%- for message in messages %}
    {%- if message.role != "system" %}
        {{- "<|" + message.role + "|>" + message.content + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{{- "<|assistant|>" }}
"""


@dataclass(frozen=True)
class Family:
    """The tokenizer of one family, and the features of its template."""

    build: Callable[[], Tokenizer] | None
    template: str
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    adds_bos: bool = False
    strips_right: bool = False
    has_system: bool = True
    takes_parts: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(
        build=byte_level_bpe,
        template=LLAMA,
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        adds_bos=True,
    ),
    "qwen2": Family(byte_level_bpe, QWEN2, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>"),
    "qwen3": Family(
        build=byte_level_bpe,
        template=QWEN3,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        added=("<think>", "</think>", "<tool_response>"),
        eos="<|im_end|>",
    ),
    "mistral": Family(
        mistral_bpe, MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), bos="<s>", eos="</s>", adds_bos=True
    ),
    "mistral-small": Family(
        build=byte_level_bpe,
        template=MISTRAL_SMALL,
        special=("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        bos="<s>",
        eos="</s>",
        adds_bos=True,
    ),
    "llama2": Family(llama2_bpe, MISTRAL, ("<s>", "</s>"), bos="<s>", eos="</s>", adds_bos=True),
    "gemma": Family(
        build=gemma_bpe,
        template=GEMMA,
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        added=("\n", "\n\n"),
        bos="<bos>",
        eos="<eos>",
        adds_bos=True,
        has_system=False,
    ),
    "phi3": Family(
        build=llama2_bpe,
        template=PHI3,
        special=("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        strips_right=True,
    ),
    "phi4": Family(
        byte_level_bpe, PHI4, ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), eos="<|im_end|>"
    ),
    "parts": Family(
        build=mistral_bpe,
        template=PARTS_ONLY,
        special=("<s>", "<end_of_utterance>"),
        bos="<s>",
        eos="<end_of_utterance>",
        takes_parts=True,
    ),
    "plain": Family(byte_level_bpe, PLAIN, ("</s>",), eos="</s>"),
    "tight": Family(lambda: byte_level_bpe(None), TIGHT, has_system=False),
    "characters": Family(None, QWEN2, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>"),
}
"""Plain, tight and characters belong to no real family: control tokens are text, merged everywhere; and no Rust."""


@functools.cache
def tiny_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Give the tokenizer of a family; always the same object, so do not change it."""
    family = FAMILIES[name]
    special = [AddedToken(token, special=True, rstrip=family.strips_right) for token in family.special]
    added = [AddedToken(token, special=False, normalized=False) for token in family.added]
    names = {"bos_token": family.bos, "eos_token": family.eos}
    names = {key: value for key, value in names.items() if value is not None}
    if family.build is None:
        slow = CharacterTokenizer(chat_template=family.template)
        slow.add_special_tokens({**names, "additional_special_tokens": list(family.special)})
        return slow
    tokenizer = family.build()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(added)
    if family.adds_bos and family.bos:
        with_bos(tokenizer, family.bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=family.template, **names)
