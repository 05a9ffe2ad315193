"""Every LLM family, loaded as real ones: it reads embeddings as ids, and answers as transformers does."""

from pathlib import Path

import pytest
import torch
from support.tiny_families import FAMILIES, save_tiny_llm
from support.tiny_models import save_tiny_backbones
from transformers import PreTrainedModel

from ossicle.chat.messages import parse_conversation
from ossicle.config import BaseSettings, ConnectorSettings
from ossicle.ear import Ear, EarSettings

MESSAGES = [{"role": "user", "content": "what is the capital of france?"}]
SOUND = torch.sin(torch.arange(8_000) * 0.3).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> str:
    return save_tiny_backbones(folder).encoder


@pytest.fixture(scope="module", params=FAMILIES)
def ear(request: pytest.FixtureRequest, folder: Path, encoder: str) -> Ear:
    """A new ear for an LLM of the family, with both backbones loaded from folders."""
    llm = save_tiny_llm(request.param, folder / request.param)
    settings = EarSettings(
        base=BaseSettings(encoder=encoder, llm=llm), connector=ConnectorSettings(n_queries=32)
    )
    torch.manual_seed(0)
    return Ear.new(settings, "cpu")


def tokenize_messages(ear: Ear, messages: list | None = None) -> torch.Tensor:
    return torch.tensor([ear.template.tokenize(parse_conversation(messages or MESSAGES))])


def generate_with_transformers(llm: PreTrainedModel, tokenizer, ids: torch.Tensor, **options) -> str:
    """Returns transformers' own answer."""
    output = llm.generate(  # ty: ignore[not-callable]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=tokenizer.eos_token_id,
        **options,
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_embeddings_are_read_exactly_as_ids(ear: Ear) -> None:
    ids = tokenize_messages(ear)
    with torch.no_grad():
        by_ids = ear.llm(input_ids=ids).logits
        by_embeds = ear.llm(inputs_embeds=ear.embed(ids)).logits
    torch.testing.assert_close(by_embeds, by_ids, rtol=0, atol=0)


def test_embeddings_enter_the_first_layer_exactly_as_ids_do(ear: Ear) -> None:
    """An audio token that equals a word's embedding enters the layers as that word does."""
    ids, entered = tokenize_messages(ear), []
    first = next(module for name, module in ear.llm.named_modules() if name.endswith(("layers.0", ".h.0")))
    handle = first.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        ear.llm(input_ids=ids)
        ear.llm(inputs_embeds=ear.embed(ids))
    handle.remove()
    torch.testing.assert_close(entered[0], entered[1], rtol=0, atol=0)


def test_greedy_answers_equal_those_of_transformers(ear: Ear) -> None:
    said = ear.chat(MESSAGES, max_new_tokens=12)
    assert said == generate_with_transformers(ear.llm, ear.tokenizer, tokenize_messages(ear))
    assert "".join(ear.stream(MESSAGES, max_new_tokens=12)) == said


def test_answers_do_not_depend_on_the_batch(ear: Ear) -> None:
    talks = [
        MESSAGES,
        [{"role": "user", "content": [{"type": "audio", "audio": SOUND}]}],
        [{"role": "user", "content": "the cat sat on the mat. " * 4}],
        [
            {"role": "user", "content": [{"type": "audio", "audio": (SOUND, 16_000)}]},
            {"role": "assistant", "content": "yes."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "and"}, {"type": "audio", "audio": SOUND[:3000]}],
            },
        ],
    ]
    singles = [ear.chat(talk, max_new_tokens=8) for talk in talks]
    assert ear.chat_batch(talks, max_new_tokens=8) == singles
    assert any(singles)


def test_final_states_and_logits_equal_those_of_the_llm(ear: Ear) -> None:
    split = ear.template.split_prompt("hello there")
    whole = torch.tensor([[*split.prefix, *split.text, *split.suffix]])
    assert split.is_framed
    n, n_suffix = len(split.text), len(split.suffix)
    states = ear.llm_states(ear.embed(torch.tensor([split.text])), [n], [n + n_suffix])
    with torch.no_grad():
        truth = ear.llm(input_ids=whole, output_hidden_states=True)
    torch.testing.assert_close(states, truth.hidden_states[-1][:, -n - n_suffix :])
    torch.testing.assert_close(ear.next_token_logits(states[:, -1]), truth.logits[:, -1])
