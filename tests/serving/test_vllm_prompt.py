"""What a vLLM is sent, so that it reads a conversation as the ear's own prompt has it; and words from an LLM's files."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.fake_vllm import FakeVllm, text_part, to_ear_messages, user_message
from support.tiny_families import save_tiny_llm, tiny_llm
from support.tiny_models import tiny_ear, tiny_llama
from support.tiny_tokenizers import FAMILIES, tiny_tokenizer
from support.vllm_conversations import CONVERSATIONS, EXACT_FAMILIES, WHITE_SPACE_FAMILIES, sound_part

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.embedding_table import EmbeddingTable
from ossicle.backbones.pretrained import build_meta_llm
from ossicle.chat.messages import parse_conversation
from ossicle.chat.prompt_segments import AudioSegment
from ossicle.chat.template import ChatTemplate
from ossicle.config import PromptSettings
from ossicle.errors import CheckpointError, RequestError
from ossicle.serving.errors import ApiError
from ossicle.serving.vllm.engine import load_input_embeddings
from ossicle.serving.vllm.prompt import VllmPrompt, VllmTemplate, build_embeds_part


def read(part: dict[str, str]) -> torch.Tensor:
    return torch.load(io.BytesIO(base64.b64decode(part["data"])), weights_only=True)


def test_embeddings_bring_nothing_of_their_neighbours_along() -> None:
    batch = torch.randn(64, 100, 32, dtype=torch.bfloat16)
    part = build_embeds_part(batch[3, :5])
    torch.testing.assert_close(read(part), batch[3, :5], rtol=0, atol=0)
    assert len(part["data"]) < 4_000


def prompt_for(tokenizer: Any) -> VllmPrompt:
    table = torch.arange(4 * (len(tokenizer) + 8), dtype=torch.float32).view(-1, 4)
    return VllmPrompt(ChatTemplate(tokenizer, PromptSettings()), lambda ids: table[list(ids)])


def both_ways(family: str, system: str | None, talk: list[Any]) -> tuple[list[int], list[int]]:
    """The token sequence that vLLM makes of what it is sent, and the ear's own, each sound as two negative numbers."""
    tokenizer = tiny_tokenizer(family)
    ear = tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer), prompt=PromptSettings(system=system))
    prompt = VllmPrompt(ear.template, ids_as_rows)
    layout = prompt.lay_out(talk)
    heard = [torch.full((2, 1), -1.0 - number) for number in range(len(layout.sounds))]
    stand_in = FakeVllm(ear, takes_parts=FAMILIES[family].takes_parts)
    sent = {
        "messages": prompt.build_messages(layout, heard),
        "chat_template_kwargs": prompt.template.pinned_kwargs,
    }
    ids, tensors = stand_in.lay_out(sent)
    got: list[int] = []
    for number in ids:
        got += tensors.pop(0)[:, 0].int().tolist() if number == stand_in.placeholder_id else [number]
    own: list[int] = []
    for piece in ear.template.render(parse_conversation(to_ear_messages(talk))):
        own += [-1 - piece.index] * 2 if isinstance(piece, AudioSegment) else piece.ids
    return got, own


def ids_as_rows(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.float32)[:, None]


SYSTEMS = pytest.mark.parametrize("system", [None, "Answer in Spanish."])
LAYOUTS = pytest.mark.parametrize("talk", CONVERSATIONS.values(), ids=CONVERSATIONS)


@LAYOUTS
@SYSTEMS
@pytest.mark.parametrize("family", EXACT_FAMILIES)
def test_what_stands_around_a_sound_is_the_ear_s_own(
    family: str, system: str | None, talk: list[Any]
) -> None:
    got, own = both_ways(family, system, talk)
    assert got == own


@LAYOUTS
def test_a_day_that_cannot_be_pinned_is_all_that_is_not(talk: list[Any]) -> None:
    got, own = both_ways("mistral-small", "Answer in Spanish.", talk)
    assert got == own
    got, own = both_ways("mistral-small", None, talk)
    begun: Any = tiny_tokenizer("mistral-small").convert_tokens_to_ids("[INST]")
    assert got[got.index(begun) :] == own[own.index(begun) :]


@LAYOUTS
@SYSTEMS
@pytest.mark.parametrize("family", WHITE_SPACE_FAMILIES)
def test_white_space_of_a_template_is_all_that_differs(
    family: str, system: str | None, talk: list[Any]
) -> None:
    def but_for_white_space(ids: list[int]) -> str:
        names = (str(i) if i < 0 else tiny_tokenizer(family).convert_ids_to_tokens(i) for i in ids)
        return "".join(map(str, names)).replace("▁", "").replace("Ġ", "")

    got, own = both_ways(family, system, talk)
    assert but_for_white_space(got) == but_for_white_space(own)
    template = VllmTemplate(ChatTemplate(tiny_tokenizer(family), PromptSettings()))
    assert template.placeholder_frame != template.frame


def test_words_that_merge_with_the_template_are_refused() -> None:
    prompt = prompt_for(tiny_tokenizer("qwen2"))
    with pytest.raises(ApiError, match=r"messages\[1\].content begins or ends .* white space"):
        prompt.lay_out(
            [{"role": "system", "content": "x"}, user_message(text_part("\nhello"), sound_part(0))]
        )


def picture(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "http://inside/"}, **more}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            user_message(text_part("say <|im_end|>"), sound_part(0)),
            r"messages\[0\].content holds '<\|im_end\|>', a control token",
        ),
        (user_message(sound_part(0), picture()), r"messages\[0\].content\[1\] is .*expected a dict"),
        (user_message(picture()), r"messages\[0\].content\[0\] is of type 'image_url', expected text"),
        (user_message({"type": "prompt_embeds", "data": "AAAA"}), "is of type 'prompt_embeds'"),
        (user_message({"image_url": "http://inside/"}), "is of type None"),
        ({"role": "assistant", "content": [sound_part(0)]}, "has the role 'assistant' and holds sound"),
        ({"role": "tool", "content": [sound_part(0)]}, "has the role 'tool' and holds sound"),
    ],
)
def test_what_vllm_must_not_be_given_is_refused(message: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        prompt_for(tiny_tokenizer("qwen2")).lay_out([message])


def test_a_text_cannot_be_taken_for_anything_else() -> None:
    """With a uuid, vLLM looks for a picture or embeddings whatever the type says."""
    part = {"type": "text", "text": "a", "uuid": "1", "image_url": "http://inside/", "data": "AAAA"}
    tool = {"role": "tool", "tool_call_id": "1", "content": [part, part]}
    thought = {"role": "assistant", "content": [{**part, "type": "thinking", "thinking": "b"}, part]}
    layout = prompt_for(tiny_tokenizer("qwen2")).lay_out([user_message(part), tool, thought])
    assert layout.messages == (
        {"role": "user", "content": "a"},
        {"role": "tool", "tool_call_id": "1", "content": [text_part("a"), text_part("a")]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "b"}, text_part("a")]},
    )


@pytest.mark.parametrize(
    "messages",
    [[], ["x"], [None], [{"role": "user"}], [{"role": ["user"], "content": {"a": 1}}], [{"content": None}]],
)
def test_malformed_messages_without_sound_are_vllm_s_to_refuse(messages: list[Any]) -> None:
    prompt = prompt_for(tiny_tokenizer("qwen2"))
    assert prompt.build_messages(prompt.lay_out(messages), []) == messages


@pytest.mark.parametrize("family", ["llama", "gemma3", "granite"])
def test_rows_are_read_as_the_llm_embeds_them(family: str, tmp_path: Path) -> None:
    llm, _ = tiny_llm(family)
    name = save_tiny_llm(family, tmp_path)
    outline = get_input_embeddings(build_meta_llm(name, None))
    words = EmbeddingTable(name, None, "model.embed_tokens.weight", outline)
    ids = [5, 0, 5, 300]
    torch.testing.assert_close(words(ids), get_input_embeddings(llm)(torch.tensor(ids)), rtol=0, atol=0)


def test_rows_are_found_in_parts_and_under_longer_names(tmp_path: Path) -> None:
    outline = torch.nn.Embedding(7, 4, device="meta")
    table = torch.randn(7, 4)
    save_file({"vision.embed_tokens.weight": torch.randn(3, 4)}, tmp_path / "part-1.safetensors")
    save_file({"language_model.model.embed_tokens.weight": table}, tmp_path / "part-2.safetensors")
    by_key = {
        "vision.embed_tokens.weight": "part-1.safetensors",
        "language_model.model.embed_tokens.weight": "part-2.safetensors",
        "lm_head.weight": "part-3.safetensors",
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": by_key}))
    words = EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", outline)
    assert torch.equal(words([6, 1]), table[[6, 1]])


def test_files_without_the_table_are_refused(tmp_path: Path) -> None:
    class Hashed(torch.nn.Embedding):
        pass

    outline = torch.nn.Embedding(7, 4, device="meta")
    with pytest.raises(CheckpointError, match=r"cannot be read .model.safetensors is missing"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", outline)
    save_file({"model.embed_tokens.weight": torch.randn(7, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no table .embed_tokens.weight. of 7 x 4"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", outline)
    (tmp_path / "model.safetensors").write_bytes(b"{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", outline)
    with pytest.raises(CheckpointError, match="with a Hashed, expected a plain table"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", Hashed(7, 4, device="meta"))


def test_an_llm_that_is_here_embeds_words_itself() -> None:
    ear = tiny_ear()
    assert torch.equal(load_input_embeddings(ear)([1, 2]), ear.embed([1, 2]))
