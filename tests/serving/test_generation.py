"""One completion, token by token: its text and its finish reason."""

import torch
from support.tiny_families import tiny_llm
from torch import Tensor

from ossicle.backbones.causal_lm import get_eos_ids
from ossicle.chat.incremental_text import IncrementalDetokenizer
from ossicle.chat.sampling import SamplingSettings, TokenSampler
from ossicle.serving.generation import Completion


def one_hot(token: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), 1000).float()


def complete(ids: list[int], *, stop: list[str], max_tokens: int = 99) -> tuple[str, str | None, int]:
    """Returns text, finish reason and number of tokens of a completion for which the LLM predicts some ids."""
    llm, tokenizer = tiny_llm("qwen2")
    eos_ids = get_eos_ids(llm, tokenizer)
    completion = Completion(
        TokenSampler(llm, SamplingSettings(), []),
        IncrementalDetokenizer(tokenizer, eos_ids),
        frozenset(eos_ids),
        stop,
        max_tokens,
    )
    text = ""
    for token in ids:
        delta = completion.append_token(one_hot(token))
        text += delta.text
        if delta.finish_reason:
            return text, delta.finish_reason, completion.n_tokens
    return text, None, completion.n_tokens


def test_a_completion_ends_at_an_end_of_sequence_a_stop_string_or_the_maximum_length() -> None:
    llm, tokenizer = tiny_llm("qwen2")
    text = "the cat sat on the mat."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    [eos_id] = get_eos_ids(llm, tokenizer)
    assert complete([*ids, eos_id, *ids], stop=[]) == (text, "stop", len(ids) + 1)
    assert complete([*ids, eos_id], stop=["at on"])[:2] == ("the cat s", "stop")
    assert complete(ids, stop=[], max_tokens=len(ids)) == (text, "length", len(ids))
    assert complete([*ids, eos_id], stop=["mat.!"])[:2] == (text, "stop")  # the stop string is never complete
    assert complete(ids, stop=[])[1] is None
