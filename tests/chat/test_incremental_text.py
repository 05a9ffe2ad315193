"""Text that comes in pieces: it is passed on up to the first stop string, however it is split."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_families import tiny_llm
from support.tiny_prompts import build_prompt

from ossicle.chat import generation
from ossicle.chat.incremental_text import StopStringBuffer


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=8),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2),
)
def test_text_is_passed_on_up_to_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    buffer = StopStringBuffer(stop)
    passed_on = "".join(map(buffer.add, pieces)) + buffer.flush()
    whole = "".join(pieces)
    # Of two stop strings that overlap, the one that is complete first counts.
    ends = [n for n in range(len(whole) + 1) if any(whole[:n].endswith(string) for string in stop)]
    starts = [whole.find(string) for string in stop if string in whole]
    assert buffer.is_stopped == bool(ends)
    assert passed_on == whole if not starts else passed_on in {whole[:start] for start in starts}
    assert not any(string in passed_on for string in stop)


@pytest.mark.parametrize("family", ["mistral", "gemma", "phi3", "llama", "qwen2"])
def test_streamed_pieces_join_to_the_whole_answer_for_every_kind_of_tokenizer(family: str) -> None:
    """Random answers are full of broken characters and stray spaces, which decoders join differently."""
    llm, tokenizer = tiny_llm(family)
    prompt = build_prompt(llm, tokenizer, "hello there")
    torch.manual_seed(5)
    expected = generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=40, temperature=1.5)[0]
    torch.manual_seed(5)
    pieces = list(generation.stream_answer(llm, tokenizer, prompt, max_new_tokens=40, temperature=1.5))
    assert "".join(pieces) == expected
    assert len(pieces) > 5
    assert all(pieces)
