"""Answers of a given shape: whatever is drawn from a grammar is a call of the family, with its own marks."""

import copy
import json
import random
from typing import Any

import pytest
import torch
from support.tiny_tokenizers import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from ossicle.chat.grammar import AnswerGrammar, GrammarCompiler, build_call_grammar, build_json_grammar
from ossicle.chat.tool_calls import (
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    ToolCallParser,
    ToolFormat,
    WrittenCall,
)

FUNCTIONS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "count",
            "parameters": {
                "$defs": {"number": {"enum": [1, 22, 333]}},
                "properties": {"n": {"$ref": "#/$defs/number"}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "wait", "parameters": {"type": "object", "additionalProperties": False}},
    },
]


def draw_answer(
    tokenizer: PreTrainedTokenizerBase, format: ToolFormat, seed: int, answer: AnswerGrammar | None = None
) -> list[int]:
    """Draws tokens that the grammar of a call allows, to the end."""
    eos: Any = tokenizer.eos_token_id
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [eos])
    constraint = compiler.compile(build_call_grammar(format, FUNCTIONS, answer))
    rng, ids = random.Random(seed), list[int]()
    while True:
        allowed = constraint.mask(torch.zeros(len(tokenizer))).isfinite().nonzero()[:, 0].tolist()
        ids.append(rng.choice(allowed))
        if ids[-1] == eos:
            return ids[:-1]
        constraint.accept(ids[-1])


@pytest.mark.parametrize("added", ["special", "ordinary", "none"])
@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED], ids=lambda format: format.name)
def test_what_a_grammar_allows_is_one_call(format: ToolFormat, added: str) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("mistral-small"))
    marks = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"]
    if added != "none":
        tokenizer.add_tokens(marks, special_tokens=added == "special")
    drawn = set()
    for seed in range(12):
        ids = draw_answer(tokenizer, format, seed)
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        parser = ToolCallParser(format)
        (call,) = [*parser.add(text), *parser.flush()]
        assert isinstance(call, WrittenCall), text
        drawn.add((call.name, call.arguments))
        if added != "none" and format is not LLAMA:
            assert tokenizer.convert_ids_to_tokens(ids[0]) == format.start
    assert drawn <= {("wait", "{}"), *(("count", json.dumps({"n": n})) for n in (1, 22, 333))}
    assert len(drawn) > 1


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED], ids=lambda format: format.name)
def test_an_answer_of_a_shape_may_stand_in_place_of_a_call(format: ToolFormat) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("mistral-small"))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"])
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    answer = build_json_grammar({**schema, "additionalProperties": False})
    kinds = set()
    for seed in range(24):
        ids = draw_answer(tokenizer, format, seed, answer)
        parser = ToolCallParser(format, {"count", "wait"})
        (piece,) = [*parser.add(str(tokenizer.decode(ids, skip_special_tokens=False))), *parser.flush()]
        kinds.add(type(piece))
        if isinstance(piece, str):
            assert json.loads(piece).keys() == {"yes"}
    assert kinds == {str, WrittenCall}
