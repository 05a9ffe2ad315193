"""Answers of a given shape: which tokens a JSON schema allows next. It knows one answer, and no batch.

llguidance has the grammars and walks the vocabulary; without it, masks of a large vocabulary would take longer than the
LLM.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ossicle.backbones.model_files import format_one_line
from ossicle.chat.tool_calls import HERMES, LLAMA, ToolFormat
from ossicle.errors import RequestError

MAX_SCHEMA_CHARACTERS = 1 << 16
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as json.dumps writes it: an LLM that may write any writes line breaks without end now and then."""


@dataclass(frozen=True)
class AnswerGrammar:
    """The shape of an answer, in llguidance's own form."""

    text: str


def build_json_grammar(schema: Mapping[str, Any]) -> AnswerGrammar:
    """Returns the grammar of all JSON texts that a schema allows.

    Raises:
        RequestError: a schema that is too long
    """
    return AnswerGrammar(json.dumps({"grammars": [{"json_schema": _prepare(schema)}]}))


def build_call_grammar(format: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> AnswerGrammar | None:
    """Returns the grammar of one call of one of some functions; None for a form whose marks are special tokens.

    Raises:
        RequestError: functions whose schemas are too long
    """
    key = {HERMES.name: "arguments", LLAMA.name: "parameters"}.get(format.name)
    if key is None:
        return None
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                key: tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", key],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    written = json.dumps(_prepare({"anyOf": calls}))
    before, after = ('"<tool_call>\\n"', '"\\n</tool_call>"') if format is HERMES else ("", "")
    return AnswerGrammar(
        json.dumps({"grammars": [{"lark_grammar": f"start: {before} call {after}\ncall: %json {written}\n"}]})
    )


def _prepare(schema: Mapping[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        raise RequestError(
            f"the JSON schema has more than {MAX_SCHEMA_CHARACTERS} characters: send a shorter one"
        )
    return {**schema, "x-guidance": _OPTIONS}


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
        if reason := LLMatcher.validate_grammar(grammar.text, vocabulary):
            raise RequestError(f"the JSON schema cannot be used: {format_one_line(ValueError(reason))}")
        return TokenConstraint(LLMatcher(vocabulary, grammar.text, log_level=0))

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
