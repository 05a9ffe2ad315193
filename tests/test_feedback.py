"""What an autoregressive connector is told of the token before, and that it starts as the recogniser it comes from."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_families import tiny_llm
from tiny_models import tiny_ear, tiny_llama, tiny_whisper
from tiny_tokenizers import tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from earshot import checkpoint
from earshot.alignment import Transcripts
from earshot.audio import load_audio
from earshot.bases import POCKET, embeddings
from earshot.config import load_recipe
from earshot.feedback import Feedback, SharedTokens
from earshot.model import Ear, EarSettings
from earshot.vocabularies import shared_tokens


@functools.cache
def pocket_ear() -> Ear:
    """New, on the pocket models."""
    recipe = load_recipe(POCKET / "recipe.toml")
    connector = replace(recipe.connector, form="autoregressive")
    torch.manual_seed(0)
    return Ear.new(EarSettings(base=recipe.base, prompt=recipe.prompt, connector=connector), "cpu")


@functools.cache
def spoken() -> list[dict[str, Any]]:
    """Some clips that the pocket Whisper did not learn from, with their transcripts."""
    return pq.read_table(POCKET / "speech.parquet").slice(0, 64).to_pylist()


def said(ear: Ear) -> tuple[Transcripts, list[list[int]]]:
    ids = [ear.tokenizer(row["text"], add_special_tokens=False).input_ids for row in spoken()]
    longest = max(map(len, ids))
    wanted = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    table = embeddings(ear.llm).weight
    return Transcripts(torch.tensor([len(row) for row in ids]), wanted, table), ids


# What is shared


def test_tokens_are_shared_that_are_spelled_alike() -> None:
    whisper, tokenizer = tiny_whisper(), tiny_tokenizer("llama")
    llm = tiny_llama(tokenizer)
    found = shared_tokens(whisper, llm, tokenizer)
    assert found is not None
    own, other = whisper.tokenizer.get_vocab(), tokenizer.get_vocab()
    names = sorted(own.keys() & other.keys(), key=lambda name: other[name])
    assert len(names) > 50
    decoder = whisper.model.model.decoder
    assert torch.equal(found.written, decoder.embed_tokens.weight[[own[name] for name in names]])
    assert torch.equal(found.read, embeddings(llm).weight[[other[name] for name in names]])
    *before, last = whisper.tokenizer.prefix_tokens
    assert found.n_before == len(before)
    assert torch.equal(found.begin, decoder.embed_tokens.weight[last])


def spelling(ids: dict[str, int]) -> PreTrainedTokenizerBase:
    tokenizer: Any = copy.copy(tiny_tokenizer("llama"))
    tokenizer.get_vocab = lambda: ids
    return tokenizer


def test_a_space_is_a_space_in_sentencepiece_too() -> None:
    whisper, llm = tiny_whisper(), tiny_llama()
    word, number = next((t, i) for t, i in whisper.tokenizer.get_vocab().items() if t.startswith("\u0120"))
    told = {word.replace("\u0120", "\u2581"): 7, "nowhere": 3}
    found = shared_tokens(whisper, llm, spelling(told))
    assert found is not None
    assert torch.equal(found.read, embeddings(llm).weight[[7]])
    assert torch.equal(found.written, whisper.model.model.decoder.embed_tokens.weight[[number]])


def test_nothing_in_common_is_said() -> None:
    assert shared_tokens(tiny_whisper(), tiny_llama(), spelling({"nowhere": 3})) is None


# Fitting


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_it_learns_which_token_is_which_whatever_their_size(size: float) -> None:
    torch.manual_seed(0)
    written, read = torch.randn(60, 24), torch.randn(60, 16)
    feedback = Feedback(16, 24)
    shared = SharedTokens(written=written, read=read * size, begin=written[0], n_before=0)
    feedback.fit(shared)
    nearest = torch.cdist(feedback(read * size), written).argmin(1)
    assert (nearest == torch.arange(60)).float().mean() > 0.95
    assert all(weight.requires_grad and weight.grad is None for weight in feedback.parameters())


# What it is told when it hears


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_it_is_told_the_nearest_of_the_ordinary_tokens(family: str, dtype: torch.dtype) -> None:
    llm, tokenizer = tiny_llm(family)
    ear = tiny_ear("autoregressive", llm=copy.deepcopy(llm).to(dtype), tokenizer=tokenizer)
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    rows = ear.embed(ordinary).float()
    told: list[Tensor] = []
    made: Any = ear.connector
    made.feedback.register_forward_pre_hook(lambda module, given: told.append(given[0]))
    torch.manual_seed(0)
    said = rows[torch.randperm(len(rows))[:6]]
    slots = iter(said + 0.3 * rows.std() * torch.randn_like(said))
    made.projection = nn.Module()
    made.projection.forward = lambda hidden: next(slots).expand(*hidden.shape[:2], -1).to(dtype)
    nn.init.constant_(made.end_head.bias, -100.0)
    made.settings = replace(made.settings, n_queries=6)
    ear.hear(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    assert len(told) == 5
    assert torch.equal(torch.cat(told).float(), said[:5])


def test_tokens_that_no_transcript_holds_are_never_said() -> None:
    llm, tokenizer = tiny_llm("llama")
    llm = copy.deepcopy(llm)
    with torch.no_grad():
        embeddings(llm).weight[tokenizer.all_special_ids] = 0.0
    ear = tiny_ear("autoregressive", llm=llm, tokenizer=tokenizer)
    told: list[Tensor] = []
    made: Any = ear.connector
    made.feedback.register_forward_pre_hook(lambda module, given: told.append(given[0]))
    nn.init.zeros_(made.projection[2].weight)
    nn.init.zeros_(made.projection[2].bias)
    nn.init.constant_(made.end_head.bias, -100.0)
    ear.hear(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    assert told
    assert all(row.norm() > 0 for row in told)


# Starting as the recogniser


def test_a_new_ear_writes_what_the_recogniser_writes() -> None:
    """By Whisper's own head on the connector's states: the words are right before anything was learned from sound."""
    ear = pocket_ear()
    transcripts, ids = said(ear)
    states: list[Tensor] = []
    made: Any = ear.connector
    hook = made.layer_norm.register_forward_hook(lambda *given: states.append(given[2]))
    with torch.no_grad():
        made(ear.features([load_audio(row["audio"]["bytes"]) for row in spoken()]), transcripts)
    hook.remove()
    decoder, tokenizer = ear.whisper.model.model.decoder, ear.whisper.tokenizer
    written = (states[0] @ decoder.embed_tokens.weight.T).argmax(-1)
    pairs = [
        (tokenizer.convert_ids_to_tokens(int(guess)), ear.tokenizer.convert_ids_to_tokens(wanted))
        for row, guesses in zip(ids, written, strict=True)
        for wanted, guess in zip(row, guesses, strict=False)
    ]
    assert sum(guess == wanted for guess, wanted in pairs) / len(pairs) > 0.85


def test_it_hears_the_same_without_the_llm_but_for_its_embeddings(tmp_path: Path) -> None:
    ear, sound = pocket_ear(), spoken()[0]["audio"]["bytes"]
    made: Any = ear.connector
    with torch.no_grad():
        made.end_head.bias.fill_(-100.0)
    heard = ear.hear(sound)
    checkpoint.save(ear, tmp_path / "ear")
    alone = checkpoint.load(tmp_path / "ear", device="cpu", with_llm=False)
    torch.testing.assert_close(
        alone.hear(sound).to(heard.dtype), heard, rtol=0.01, atol=0.004
    )  # in half precision
    torch.testing.assert_close(alone.embed([5, 7]).float(), ear.embed([5, 7]).float())
    assert all(weight.is_meta for name, weight in alone.llm.named_parameters() if "embed" not in name)
