"""Answers of a given shape: which tokens a JSON schema allows next. It knows one answer, and no batch.

llguidance has the grammars and walks the vocabulary; without it, masks of a large vocabulary would take longer than the
LLM.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ossicle.backbones.model_files import format_one_line
from ossicle.chat.tool_calls import LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat
from ossicle.errors import RequestError

MAX_SCHEMA_CHARACTERS = 1 << 16
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as json.dumps writes it: an LLM that may write any writes line breaks without end now and then."""


@dataclass(frozen=True)
class AnswerGrammar:
    """The shape of an answer, in llguidance's own form: a JSON schema, or rules."""

    schema: Mapping[str, Any] | None = None
    rules: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)
    """What the rules call certain stretches of text, which are single tokens where the tokenizer has such."""


def build_json_grammar(schema: Mapping[str, Any]) -> AnswerGrammar:
    """Returns the grammar of all JSON texts that a schema allows.

    Raises:
        RequestError: a schema that is too long
    """
    _check_length(schema)
    return AnswerGrammar(_prepare(schema))


def build_call_grammar(
    format: ToolFormat, tools: Sequence[Mapping[str, Any]], answer: AnswerGrammar | None = None
) -> AnswerGrammar:
    """Returns the grammar of one call of one of some functions.

    Args:
        answer: of JSON, which may be written in place of a call

    Raises:
        RequestError: functions whose schemas are too long
    """
    functions = [tool["function"] for tool in tools]
    _check_length([function.get("parameters") for function in functions])
    rules = f"call: {' | '.join(_write_call(format, function) for function in functions)}\n"
    marks = {"open": format.start}
    if format is MISTRAL_NAMED:
        whole = "open call"
        rules += "id: before_id /[A-Za-z0-9]{9}/\n"
        marks |= {"before_id": "[CALL_ID]", "before": "[ARGS]"}
    elif format is MISTRAL:
        whole = 'open " "? "[" call "]"'
    elif format is LLAMA:
        whole, marks = "call", {}
    else:
        whole = 'open "\\n" call "\\n" close'
        marks |= {"close": format.end}
    if answer is not None:
        whole += " | answer"
        rules += f"answer: %json {json.dumps(answer.schema)}\n"
    return AnswerGrammar(rules=f"start: {whole}\n{rules}", marks=marks)


def _write_call(format: ToolFormat, function: Mapping[str, Any]) -> str:
    """Returns the rule of a call; the schema of its arguments stays whole, as references count from its root."""
    arguments = f"%json {json.dumps(_prepare({**(function.get('parameters') or {}), 'type': 'object'}))}"
    name = function["name"]
    if format is MISTRAL_NAMED:
        return f"{json.dumps(name)} id? before {arguments}"
    key = "parameters" if format is LLAMA else "arguments"
    before = f'"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '
    return f'"{{" {json.dumps(before)} {arguments} "}}"'  # a brace by itself, as in other JSON


def _prepare(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": _OPTIONS}


def _check_length(schema: Any) -> None:
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        raise RequestError(
            f"the JSON schema has more than {MAX_SCHEMA_CHARACTERS} characters: send a shorter one"
        )


class TokenConstraint:
    """What a grammar allows next in one answer."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self, scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """Returns the scores with minus infinity for all tokens that may not come next."""
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        mask: Bool[Tensor, " V"] = torch.zeros(len(scores), dtype=torch.bool)
        n = min(len(scores), len(allowed))
        mask[:n] = torch.from_numpy(allowed[:n])
        return scores.masked_fill(~mask.to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Goes on by the token that was sampled."""
        self._matcher.consume_token(token)


class GrammarCompiler:
    """Makes constraints of grammars, for one tokenizer.

    Args:
        n_vocab: tokens that the LLM scores
        eos_ids: tokens that end an answer
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, n_vocab: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._n_vocab, self._eos_ids = tokenizer, n_vocab, list(eos_ids)
        self._vocabulary: Any = None

    def compile(self, grammar: AnswerGrammar) -> TokenConstraint:
        """Returns the constraint of a new answer; the first one reads the whole vocabulary, which takes a second.

        Raises:
            RequestError: a schema that is not valid or not supported, or a tokenizer that cannot be read
        """
        from llguidance import LLMatcher

        vocabulary = self._vocabulary or self._read_vocabulary()
        written = json.dumps({"grammars": [self.write(grammar)]})
        if reason := LLMatcher.validate_grammar(written, vocabulary):
            raise RequestError(f"the JSON schema cannot be used: {format_one_line(ValueError(reason))}")
        return TokenConstraint(LLMatcher(vocabulary, written, log_level=0))

    def write(self, grammar: AnswerGrammar) -> dict[str, Any]:
        """Returns a grammar as llguidance reads it, with the marks that are single tokens here."""
        if grammar.schema is not None:
            return {"json_schema": grammar.schema}
        added = {token.content: id_ for id_, token in self._tokenizer.added_tokens_decoder.items()}
        marks = [
            f"{name}: {f'<[{added[mark]}]>' if mark in added else json.dumps(mark)}\n"
            for name, mark in grammar.marks.items()
        ]
        return {"lark_grammar": grammar.rules + "".join(marks)}

    def _read_vocabulary(self) -> Any:
        from llguidance import LLTokenizer

        try:
            backend = json.loads(self._tokenizer.backend_tokenizer.to_str())
            _drop_prefix_space(backend)
            backend |= {"padding": None, "truncation": None}
            n_vocab = max(self._n_vocab, len(self._tokenizer))
            self._vocabulary = LLTokenizer(json.dumps(backend), n_vocab=n_vocab, eos_token=self._eos_ids)
        except Exception as error:  # a tokenizer may be anything
            raise RequestError(
                "answers of this LLM cannot be given a shape, as its tokenizer cannot be read"
                f" ({format_one_line(error)}): leave out response_format and tool_choice"
            ) from error
        return self._vocabulary


def _drop_prefix_space(part: Any) -> None:
    """Has a tokenizer write no space before a text: llguidance would take it for the first token of every shape."""
    if isinstance(part, dict) and part.get("add_prefix_space") is True:
        part["add_prefix_space"] = False
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _drop_prefix_space(inner)
