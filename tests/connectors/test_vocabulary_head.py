"""The vocabulary that Whisper and an LLM share; an untrained ear hears what Whisper transcribes."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from support.seeding import seeded
from support.tiny_models import tiny_ear, tiny_llama, tiny_whisper
from support.tiny_tokenizers import tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ossicle import checkpoint
from ossicle.audio.waveform import load_audio
from ossicle.backbones.causal_lm import embed, get_input_embeddings
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.token_bytes import read_token_bytes
from ossicle.config import ConnectorSettings, load_recipe
from ossicle.connectors import Transcripts, build_connector
from ossicle.connectors.quantized_table import QuantizedTable, is_quantization_available
from ossicle.connectors.vocabulary_head import SharedVocabulary, VocabularyHead
from ossicle.connectors.vocabulary_overlap import build_shared_vocabulary, match_tokens, split_tokens
from ossicle.ear import Ear, EarSettings

KNOWS = ConnectorSettings(form="autoregressive", n_queries=32)


@functools.cache
def pocket_ear() -> Ear:
    """An untrained ear on the pocket models."""
    recipe = load_recipe(POCKET_DIR / "recipe.toml")
    connector = replace(recipe.connector, form="autoregressive")
    with seeded(0):
        return Ear.new(EarSettings(base=recipe.base, prompt=recipe.prompt, connector=connector), "cpu")


@functools.cache
def spoken() -> list[dict[str, Any]]:
    """Clips that the pocket Whisper was not trained on, with their transcripts."""
    return pq.read_table(POCKET_DIR / "speech.parquet").slice(0, 64).to_pylist()


def multilingual() -> Whisper:
    """A tiny Whisper of three languages."""
    whisper = copy.deepcopy(tiny_whisper())
    options: Any = whisper.model.generation_config
    options.is_multilingual = True
    options.lang_to_id = {"<|de|>": 5, "<|en|>": 3, "<|fr|>": 4}
    options.task_to_id = {"transcribe": 7, "translate": 6}
    return whisper


def random_words(
    n_words: int = 40, *, spread: float = 1.0, d_encoder: int = 24, **rows: Any
) -> SharedVocabulary:
    torch.manual_seed(0)
    drawn: dict[str, Any] = {
        "decoder_embeddings": torch.randn(n_words, d_encoder),
        "other_decoder_embeddings": torch.randn(2, d_encoder),
        "other_pieces": torch.full((2, 1), -1),
        "piece_embeddings": rows.get("llm_embeddings", torch.zeros(0, 16))[:0],
        "llm_embeddings": torch.randn(n_words, 16) * spread,
        "prompt_embeddings": torch.randn(2, d_encoder),
        "end_embedding": torch.randn(d_encoder),
        "language_embeddings": torch.zeros(0, d_encoder),
    }
    return SharedVocabulary(**drawn | rows)


# What is shared


def test_tokens_with_the_same_bytes_are_shared() -> None:
    whisper, tokenizer = tiny_whisper(), tiny_tokenizer("llama")
    llm = tiny_llama(tokenizer)
    found = build_shared_vocabulary(KNOWS, whisper, llm, tokenizer)
    assert found is not None
    own, other = whisper.tokenizer.get_vocab(), tokenizer.get_vocab()
    special = {*whisper.tokenizer.all_special_tokens, *tokenizer.all_special_tokens}
    names = sorted((own.keys() & other.keys()) - special, key=lambda name: other[name])
    assert len(names) > 50
    known = whisper.model.model.decoder.embed_tokens.weight
    assert torch.equal(found.decoder_embeddings, known[[own[name] for name in names]])
    assert torch.equal(
        found.llm_embeddings, get_input_embeddings(llm).weight[[other[name] for name in names]]
    )
    assert torch.equal(found.prompt_embeddings, known[whisper.tokenizer.prefix_tokens])
    assert torch.equal(found.end_embedding, known[whisper.tokenizer.eos_token_id])
    assert found.language_embeddings.shape == (0, known.shape[1])


def spelling(ids: dict[str, int], *special: int) -> PreTrainedTokenizerBase:
    tokenizer: Any = copy.copy(tiny_tokenizer("llama"))
    told = {"get_vocab": lambda self: ids, "all_special_ids": list(special)}
    tokenizer.__class__ = type("Spelling", (type(tokenizer),), told)
    return tokenizer


def test_pieces_and_byte_level_tokens_are_the_same_bytes() -> None:
    """SentencePiece has a sign for the space and UTF-8 pieces; byte-level BPE has a character for each byte."""
    recogniser = spelling(
        {"\u0120caf\u00c3\u00a9": 1, "\u00c3": 2, "\u00e9": 3, "\u0120the": 4, "a": 5, "!": 6}
    )
    pieces = {
        "\u2581caf\u00e9": 11,
        "\u00c3": 12,
        "<0xC3>": 13,
        "\u2581the": 14,
        "<0x61>": 15,
        "a": 16,
        "\u0120": 17,
    }
    found = match_tokens(recogniser, spelling(pieces), 100)
    assert found == [(11, 1), (13, 2), (14, 4), (16, 5)]
    byte_level = {"\u0120caf\u00c3\u00a9": 7, "\u0120the": 8, "nowhere": 9, "!": 200}
    assert match_tokens(recogniser, spelling(byte_level), 100) == [(7, 1), (8, 4)]
    assert match_tokens(recogniser, spelling(byte_level), 100, suppressed=[4]) == [(7, 1)]


def test_characters_stand_for_bytes_as_in_published_vocabularies() -> None:
    ids = {token: number for token, number in tiny_whisper().tokenizer.get_vocab().items() if len(token) == 1}
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581" * n: 256 + n for n in range(2, 5)}
    found = dict(match_tokens(spelling(ids), spelling(pieces), 1_000))
    assert len(found) == 256
    letters = {number: token for token, number in ids.items()}
    assert (letters[found[0x20]], letters[found[0x41]], letters[found[0xE9]]) == ("\u0120", "A", "\u00e9")


def test_special_tokens_are_not_shared() -> None:
    whisper, llm = tiny_whisper(), tiny_llama()
    end = whisper.tokenizer.eos_token
    word = next(token for token in whisper.tokenizer.get_vocab() if token.isalpha())
    assert build_shared_vocabulary(KNOWS, whisper, llm, spelling({end: 9})) is None
    assert build_shared_vocabulary(KNOWS, whisper, llm, spelling({word: 9}, 9)) is None
    assert build_shared_vocabulary(KNOWS, whisper, llm, spelling({word: 9})) is not None


def test_suppressed_tokens_are_not_shared() -> None:
    whisper, llm = copy.deepcopy(tiny_whisper()), tiny_llama()
    ids = whisper.tokenizer.get_vocab()
    word, other = [token for token in ids if token.isalpha() and len(token) > 1][:2]
    options: Any = whisper.model.generation_config
    options.suppress_tokens = [ids[word]]
    assert build_shared_vocabulary(KNOWS, whisper, llm, spelling({word: 9})) is None
    found = build_shared_vocabulary(KNOWS, whisper, llm, spelling({word: 9, other: 8}))
    assert found is not None
    known = whisper.model.model.decoder.embed_tokens.weight
    assert torch.equal(found.decoder_embeddings, known[[ids[other]]])
    assert len(found.other_decoder_embeddings) == len(ids) - len(whisper.tokenizer.all_special_ids) - 2
    assert not (torch.cdist(found.other_decoder_embeddings, known[[ids[word], ids[other]]]) == 0).any()


def test_tokens_without_an_embedding_are_not_shared() -> None:
    """As in fine-tuned Whispers whose tokenizer has more tokens than the model."""
    whisper = tiny_whisper()
    tokenizer: Any = copy.copy(whisper.tokenizer)
    ids = whisper.tokenizer.get_vocab() | {"added": 10_000, "later": 10_001}
    tokenizer.__class__ = type("Longer", (type(tokenizer),), {"get_vocab": lambda self: ids})
    whisper = replace(whisper, tokenizer=tokenizer)
    assert build_shared_vocabulary(KNOWS, whisper, tiny_llama(), spelling({"added": 7})) is None
    assert build_shared_vocabulary(KNOWS, whisper, tiny_llama(), spelling({"added": 7, "a": 8})) is not None


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        (KNOWS, {"nowhere": 3}),
        (KNOWS, {"a": 10_000_000}),
        (replace(KNOWS, init="random"), {"a": 3}),
        (replace(KNOWS, form="query"), {"a": 3}),
    ],
    ids=["nothing in common", "no embedding", "random", "query"],
)
def test_there_is_no_shared_vocabulary(settings: ConnectorSettings, ids: dict[str, int]) -> None:
    assert build_shared_vocabulary(settings, tiny_whisper(), tiny_llama(), spelling(ids)) is None


def test_with_several_languages_the_prompt_has_a_gap() -> None:
    whisper, tokenizer = multilingual(), tiny_tokenizer("llama")
    found = build_shared_vocabulary(KNOWS, whisper, tiny_llama(tokenizer), tokenizer)
    assert found is not None
    known = whisper.model.model.decoder.embed_tokens.weight
    start, no_times = whisper.tokenizer.prefix_tokens
    assert torch.equal(found.language_embeddings, known[[3, 4, 5]])
    assert torch.equal(found.prompt_embeddings[[0, 2, 3]], known[[start, 7, no_times]])
    assert not found.prompt_embeddings[1].any()
    options: Any = whisper.model.generation_config
    for change in ({"language": "de"}, {"language": "<|de|>"}, {"forced_decoder_ids": [[1, 5], [2, 7]]}):
        for name, value in change.items():
            setattr(options, name, value)
        fixed = build_shared_vocabulary(KNOWS, whisper, tiny_llama(tokenizer), tokenizer)
        assert fixed is not None
        assert torch.equal(fixed.language_embeddings, known[[5]])
        options.language = options.forced_decoder_ids = None


def test_languages_that_the_settings_lack_come_from_the_tokenizer() -> None:
    whisper, tokenizer = multilingual(), tiny_tokenizer("llama")
    options: Any = whisper.model.generation_config
    options.lang_to_id = None
    found = build_shared_vocabulary(KNOWS, whisper, tiny_llama(tokenizer), tokenizer)
    assert found is not None
    english = whisper.tokenizer.get_vocab()["<|en|>"]
    known = whisper.model.model.decoder.embed_tokens.weight
    assert torch.equal(found.language_embeddings, known[[english]])
    assert len(found.prompt_embeddings) == 4
    assert tiny_ear("autoregressive", whisper=whisper).hear(spoken()[0]["audio"]["bytes"]).isfinite().all()


# From states to embeddings and back


def test_a_certain_state_gives_the_embedding() -> None:
    shared = random_words()
    words = VocabularyHead(shared)
    hidden = torch.cat([10 * shared.decoder_embeddings, 10 * shared.end_embedding[None]])[None]
    logits = words.logits(hidden)
    torch.testing.assert_close(
        words.expected_embedding(logits)[0, :-1], shared.llm_embeddings, rtol=0, atol=1e-3
    )
    assert (words.end_logits(hidden, logits)[0] > 0).tolist() == [False] * len(shared.llm_embeddings) + [True]


def test_an_uncertain_state_gives_the_expected_embedding() -> None:
    shared = random_words(3)
    words = VocabularyHead(shared)
    hidden = torch.randn(2, 5, 24) / 10
    tokens = torch.cat(
        [shared.decoder_embeddings, shared.other_decoder_embeddings, shared.end_embedding[None]]
    )
    shares = (words.log_sharpness.exp() * hidden @ tokens.T).softmax(2)
    expected = (shares[..., :3] / shares[..., :3].sum(2, keepdim=True)) @ shared.llm_embeddings
    torch.testing.assert_close(words.expected_embedding(words.logits(hidden)), expected)
    torch.testing.assert_close(words.end_logits(hidden, words.logits(hidden)).sigmoid(), shares[..., -1])


def test_the_likeliest_words_stand_for_all_of_them() -> None:
    """Their expectation differs by at most the probability of the others, times twice the largest norm."""
    shared = random_words(500)
    words = VocabularyHead(shared)
    words.soften()
    logits = words.logits(torch.randn(2, 5, 24) / 3)
    whole, likeliest = words.expected_embedding(logits), words.expected_embedding_of_likeliest(logits)
    probabilities = (words.log_sharpness.exp() * logits[..., :500]).softmax(-1)
    left_out = 1 - probabilities.sort(-1, descending=True).values[..., :64].sum(-1)
    bound = 2 * left_out * shared.llm_embeddings.norm(dim=1).max()
    distances = (whole - likeliest).norm(dim=-1)
    assert (left_out > 1e-3).any()
    assert (distances <= bound + 1e-5).all()
    few = VocabularyHead(random_words(5))
    logits = few.logits(torch.randn(1, 3, 24))
    torch.testing.assert_close(few.expected_embedding_of_likeliest(logits), few.expected_embedding(logits))


needs_8_bits = pytest.mark.skipif(
    not is_quantization_available(), reason="this CPU does not multiply in 8 bits"
)


@needs_8_bits
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_likeliest_tokens_are_found_in_8_bits_and_computed_exactly(scale: float) -> None:
    words = VocabularyHead(random_words(3_000))
    hidden = scale * torch.randn(3, 1, 24)
    exact, found = words.logits(hidden), words.search_logits(hidden)
    likeliest = exact.topk(64).indices
    torch.testing.assert_close(found.gather(2, likeliest), exact.gather(2, likeliest))
    assert (found - exact).abs().max() < 0.05 * exact.std()
    assert torch.equal(words.likeliest_tokens(found[:, 0]), words.likeliest_tokens(exact[:, 0]))


def test_an_ear_that_has_heard_can_be_copied() -> None:
    """As training does, for the anchor."""
    ear = pocket_ear()
    sound = load_audio(spoken()[0]["audio"]["bytes"])
    heard = ear.hear(sound)
    copied = Ear(ear.whisper, ear.llm, ear.tokenizer, copy.deepcopy(ear.connector), ear.settings)
    assert torch.equal(copied.hear(sound), heard)


@needs_8_bits
def test_a_product_in_8_bits_does_not_depend_on_its_batch() -> None:
    table = QuantizedTable(torch.randn(100, 24))
    rows = torch.randn(5, 24) * torch.tensor([[1e-3], [1.0], [50.0], [0.0], [1.0]])
    together = table.multiply(rows)
    torch.testing.assert_close(together, torch.cat([table.multiply(row[None]) for row in rows]))
    assert not together[3].any()


def test_without_8_bits_all_logits_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.connectors.vocabulary_head.is_quantization_available", lambda: False)
    words, hidden = VocabularyHead(random_words(300)), torch.randn(2, 1, 24)
    assert torch.equal(words.search_logits(hidden), words.logits(hidden))


def test_a_sum_of_probabilities_is_the_same_without_a_gradient() -> None:
    words, hidden = VocabularyHead(random_words()), torch.randn(2, 3, 24)
    logits = words.logits(hidden)
    trained = words.end_logits(hidden.requires_grad_(), logits.requires_grad_())
    torch.testing.assert_close(words.end_logits(hidden.detach(), logits.detach()), trained.detach())


def test_the_next_input_is_the_word_that_was_written() -> None:
    shared = random_words(9)
    words = VocabularyHead(shared)
    logits = words.logits(10 * shared.decoder_embeddings[None, [4, 2, 7]])[0]
    written = words.likeliest_tokens(logits)
    assert written.tolist() == [4, 2, 7]
    in_llm, in_whisper = words.embed_written(written)
    assert torch.equal(in_llm, shared.llm_embeddings[[4, 2, 7]])
    assert torch.equal(in_whisper, shared.decoder_embeddings[[4, 2, 7]])
    words.other_pieces = torch.tensor([[3, 5], [-1, -1]])
    logits[1, 9:] = logits.max() + 1  # the second unshared token has no pieces
    written = words.likeliest_tokens(logits)
    assert written.tolist() == [4, 9, 7]
    assert words.is_unshared(written).tolist() == [False, True, False]
    in_llm, in_whisper = words.embed_written(written)
    assert torch.equal(in_llm, shared.llm_embeddings[[4, 5, 7]])
    assert torch.equal(in_whisper[1], shared.other_decoder_embeddings[0])


def test_the_likelihood_is_that_of_an_asr_model() -> None:
    """Against transformers' own loss, over the tokens that are shared."""
    shared = random_words(9)
    words, hidden = VocabularyHead(shared), torch.randn(2, 5, 24)
    candidates = torch.cat([shared.llm_embeddings[[4, 0, 7]], torch.randn(1, 16)])
    spelled = words.nearest_tokens(candidates[torch.tensor([[0, 1, 2, 3, 0], [2, 0, 0, 0, 0]])])
    found = words.log_likelihood(words.logits(hidden), spelled, torch.tensor([4, 1]))
    labels = torch.tensor([[4, 0, 7, -100, -100], [7, -100, -100, -100, -100]])
    losses = torch.nn.functional.cross_entropy(
        (hidden @ torch.cat([shared.decoder_embeddings, shared.other_decoder_embeddings]).T).transpose(1, 2),
        labels,
        reduction="none",
    )
    torch.testing.assert_close(found, -losses.sum(1))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_the_nearest_word_is_found_at_every_scale(spread: float) -> None:
    shared = random_words(spread=spread)
    words = VocabularyHead(shared)
    beside = shared.llm_embeddings + 0.2 * spread * torch.randn_like(shared.llm_embeddings)
    assert torch.equal(words.nearest_tokens(beside).index, torch.arange(len(beside)))
    assert not words.nearest_tokens(beside).is_exact.any()
    assert words.nearest_tokens(shared.llm_embeddings.bfloat16()).is_exact.all()


def test_the_nearest_word_is_searched_once_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    words, table = VocabularyHead(random_words()), torch.randn(90, 16)
    searched: list[int] = []
    search = words.nearest_tokens

    def record(points: torch.Tensor) -> Any:
        searched.append(len(points))
        return search(points)

    monkeypatch.setattr(words, "nearest_tokens", record)
    for ids in ([3, 80, 12], [12, 3], [89, 80, 7]):
        index = torch.tensor(ids)
        found, expected = words.recall_nearest_tokens(table[index], index), search(table[index])
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.is_exact, expected.is_exact)
    assert searched == [3, 2]


def test_rounding_does_not_change_the_nearest_token() -> None:
    torch.manual_seed(0)
    read = torch.randn(60, 512).bfloat16()
    words = VocabularyHead(random_words(60, llm_embeddings=read))
    with torch.autocast("cpu", torch.bfloat16):
        spelled = words.nearest_tokens(read.float())
        logits = words.logits(torch.randn(1, 4, 24))
    assert spelled.is_exact.all()
    assert torch.equal(spelled.index, torch.arange(60))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("is_one_of_several", [False, True])
def test_half_precision(is_one_of_several: bool) -> None:
    ear = tiny_ear("autoregressive", whisper=multilingual() if is_one_of_several else tiny_whisper())
    made: Any = ear.connector.bfloat16()
    features = ear.encode_sounds([load_audio(spoken()[0]["audio"]["bytes"])])
    features = replace(features, states=features.states.bfloat16())
    with torch.no_grad():
        assert made(features).tokens.isfinite().all()
        said = Transcripts(torch.tensor([3]), torch.tensor([[4, 0, 2]]), made.vocabulary_head.llm_embeddings)
        assert made(features, said).tokens.isfinite().all()


def test_a_vocabulary_on_another_device_or_dtype_is_accepted() -> None:
    """As on a GPU; the meta device stands for the second device."""
    elsewhere = random_words(d_encoder=32)
    with torch.device("meta"):
        made: Any = build_connector(tiny_whisper().config, KNOWS, 16, elsewhere)
    assert made.positions.is_meta
    assert not made.vocabulary_head.llm_embeddings.is_meta


def test_shared_embeddings_are_not_stored_and_not_trained() -> None:
    words = VocabularyHead(random_words())
    assert list(words.state_dict()) == [name for name, _ in words.named_parameters()] == ["log_sharpness"]


def test_training_on_some_words_does_not_change_the_others() -> None:
    ear = tiny_ear("autoregressive")
    made: Any = ear.connector
    before = made.vocabulary_head.llm_embeddings.clone(), made.vocabulary_head.decoder_embeddings.clone()
    said = Transcripts(torch.tensor([3]), torch.tensor([[4, 0, 2]]), before[0])
    heard = made(ear.encode_sounds([load_audio(spoken()[0]["audio"]["bytes"])]), said)
    heard.tokens.sum().backward()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    optimizer.step()
    assert torch.equal(made.vocabulary_head.llm_embeddings, before[0])
    assert torch.equal(made.vocabulary_head.decoder_embeddings, before[1])
    assert any(weight.grad is not None and weight.grad.any() for weight in made.layers.parameters())


# Hearing


def test_the_prompt_has_the_detected_language() -> None:
    whisper = multilingual()
    ear = tiny_ear("autoregressive", whisper=whisper)
    made: Any = ear.connector
    features = ear.encode_sounds([load_audio(row["audio"]["bytes"]) for row in spoken()[:4]])
    decoder = whisper.model.model.decoder
    start = torch.tensor([[whisper.config.decoder_start_token_id]])
    with torch.no_grad():
        clip = features.states[:1, features.mask[0]]
        state = decoder(start, encoder_hidden_states=clip).last_hidden_state[:, 0]
        spoken_in = 3 + int((state @ decoder.embed_tokens.weight[[3, 4, 5]].T).argmax())
        language = made._embed_prompt(features)[0, 1] - made.positions[1]
    torch.testing.assert_close(language, decoder.embed_tokens.weight[spoken_in], rtol=1e-3, atol=1e-4)


def test_training_and_inference_see_the_same_previous_tokens() -> None:
    """Training on the words that it decoded gives the same audio tokens, and Whisper's own logits."""
    whisper = multilingual()
    ear = tiny_ear("autoregressive", whisper=whisper, slots_per_second=6.0)
    made: Any = ear.connector
    features = ear.encode_sounds([load_audio(row["audio"]["bytes"]) for row in spoken()[:3]])
    torch.nn.init.constant_(made.end_head.bias, -100.0)
    head = made.vocabulary_head
    head.expected_embedding_of_likeliest = head.expected_embedding  # unlikely words count in training only
    embed = head.embed_written
    written: list[torch.Tensor] = []

    def embed_and_record(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        written.append(tokens)
        return embed(tokens)

    head.embed_written = embed_and_record
    with torch.no_grad():
        heard = made(features)
        words = torch.stack([*written, torch.zeros_like(written[0])], dim=1)  # the last one is not read again
        transcripts = Transcripts(heard.n_tokens, words, made.vocabulary_head.llm_embeddings)
        learned = made(features, transcripts)
    assert heard.tokens.shape[1] > 5
    for row, n in enumerate(heard.n_tokens):
        torch.testing.assert_close(learned.tokens[row, :n], heard.tokens[row, :n], rtol=1e-3, atol=1e-4)
    decoder, spoken_in = whisper.model.model.decoder, made._embed_prompt(features)[:1]
    n, clip = int(heard.n_tokens[0]), features.states[:1, features.mask[0]]
    known = made.vocabulary_head.decoder_embeddings
    places = decoder.embed_positions.weight[: 3 + n]
    rows = torch.cat([spoken_in, made.queries[:1][None], known[words[:1, : n - 1]]], dim=1)
    rows = rows + torch.cat([torch.zeros(3, known.shape[1]), places[3:]])
    decoder.set_attn_implementation("eager")
    with torch.no_grad():
        states = decoder(inputs_embeds=rows - places, encoder_hidden_states=clip).last_hidden_state
    logits = (
        states[0, 3:] @ torch.cat([known, made.vocabulary_head.other_decoder_embeddings]).T
    ).log_softmax(-1)
    expected = logits.gather(1, words[0, :n, None]).sum()
    torch.testing.assert_close(learned.log_likelihood[0], expected, rtol=1e-3, atol=1e-3)


def test_an_untrained_ear_hears_what_whisper_transcribes() -> None:
    """Before any training on sound; where the two differ, it is by a small margin."""
    ear, rows = pocket_ear(), spoken()
    sounds = [row["audio"]["bytes"] for row in rows]
    written = zip(ear.transcribe_audio_tokens(sounds), ear.transcribe(sounds), strict=True)
    agree = sum(heard.lower() == transcript.lower() for heard, transcript in written)
    assert agree / len(rows) > 0.75


def test_tokens_that_the_llm_lacks_are_split_into_its_own() -> None:
    whisper_tokenizer = spelling({"\u0120Phil": 1, "\u0120Philip": 2, "ip": 3, "\u00c3": 4, "<|0.00|>": 5})
    whisper_tokenizer.get_added_vocab = lambda: {"<|0.00|>": 5}
    tokenizer = tiny_tokenizer("llama")
    whole, none, half, control = split_tokens(whisper_tokenizer, tokenizer, [2, 6, 4, 5])
    assert tokenizer.decode(whole) == " Philip"
    assert len(whole) > 1
    assert none == control == []
    assert [read_token_bytes(tokenizer)[id_] for id_ in half] == [b"\xc3"]
    assert split_tokens(whisper_tokenizer, tokenizer, []) == []


@pytest.mark.parametrize("family", ["llama2", "phi3", "mistral", "gemma", "qwen2", "llama"])
def test_pieces_stand_for_the_same_bytes_whatever_the_llm_writes_at_a_line_s_begin(family: str) -> None:
    written = {
        1: "\u0120Philipsburg",
        2: "burg",
        3: "\u00c3",
        4: "\u0120",
        5: "\u010a",
        6: "\u0120gr\u00c3\u00bcn",
    }
    whisper_tokenizer = spelling({token: id_ for id_, token in written.items()})
    whisper_tokenizer.get_added_vocab = dict
    tokenizer = tiny_tokenizer(family)
    bytes_of = read_token_bytes(tokenizer)
    for id_, pieces in zip(written, split_tokens(whisper_tokenizer, tokenizer, list(written)), strict=True):
        content = read_token_bytes(whisper_tokenizer)[id_]
        assert b"".join(bytes_of[piece] for piece in pieces) == content


@pytest.mark.parametrize(
    "kind",
    ["right", "begun", "wrong", "one wrong", "one missing", "wrong from the third", "too long", "empty"],
)
def test_a_draft_changes_the_passes_and_not_the_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = pocket_ear()
    connector: Any = ear.connector
    sounds = [load_audio(row["audio"]["bytes"]) for row in spoken()[:8]]
    features = ear.encode_sounds([max(sounds, key=len)])
    with torch.no_grad():
        plain = connector(features)
    said = plain.written[0]
    assert len(said) > 4
    other = (said + 1) % len(connector.vocabulary_head.llm_embeddings)
    draft = {
        "right": said,
        "begun": said[:3],
        "wrong": other,
        "wrong from the third": torch.cat([said[:2], other[2:]]),
        "one wrong": torch.cat([said[:2], other[2:3], said[3:]]),
        "one missing": torch.cat([other[:1], said]),
        "too long": torch.cat([said, said, said]),
        "empty": said[:0],
    }[kind]
    decode, n_passes = connector.decode, []

    def count(*args: Any) -> Tensor:
        n_passes.append(args[0].shape[1])
        return decode(*args)

    monkeypatch.setattr(connector, "decode", count)
    with torch.no_grad():
        found = connector(features, draft=draft)
    assert torch.equal(found.written[0], said)
    n = int(plain.n_tokens)
    assert torch.equal(found.n_tokens, plain.n_tokens)
    torch.testing.assert_close(found.tokens[:, :n], plain.tokens[:, :n], rtol=1e-4, atol=1e-5)
    n_accepted = {"right": len(said), "too long": len(said), "begun": 3, "wrong from the third": 2}.get(
        kind, 0
    )
    assert len(n_passes) <= len(said) + 2 - n_accepted


def test_a_token_that_the_llm_lacks_becomes_several_audio_tokens() -> None:
    """Whisper goes on from its own token; the other clips of the batch are not changed."""
    ear = tiny_ear("autoregressive")
    connector: Any = ear.connector
    head = connector.vocabulary_head
    n_words, d_encoder = head.decoder_embeddings.shape
    torch.manual_seed(0)
    unshared = 1e-4 * torch.randn(2, d_encoder)
    extra = torch.randn(1, head.llm_embeddings.shape[1])
    features = ear.encode_sounds([load_audio(row["audio"]["bytes"]) for row in spoken()[:2]])
    torch.nn.init.constant_(connector.end_head.bias, -100.0)
    plain = connector(features)
    head.other_decoder_embeddings, head.piece_embeddings = unshared, extra
    head.other_pieces = torch.tensor([[3, n_words, 5], [-1, -1, -1]])
    fed: list[Tensor] = []
    logits, decode = head.search_logits, connector.decode
    calls = iter(range(1_000))

    def write_unshared_at_second_step(hidden: Tensor) -> Tensor:
        scores = logits(hidden)
        if next(calls) == 1:
            scores[0, -1, n_words] = scores.max() + 1.0  # the first clip's: it has pieces
            scores[1, -1, n_words + 1] = scores.max() + 1.0  # the second clip's: it has none
        return scores

    def record(queries: Tensor, *args: Any) -> Tensor:
        fed.append(queries)
        return decode(queries, *args)

    head.search_logits, connector.decode = write_unshared_at_second_step, record
    with torch.no_grad():
        heard = connector(features)
    table = torch.cat([head.llm_embeddings, extra])
    torch.testing.assert_close(heard.tokens[0, 1:4], table[[3, n_words, 5]])
    torch.testing.assert_close(heard.tokens[:, 0], plain.tokens[:, 0])
    position = connector._slot_queries(3)[2]
    torch.testing.assert_close(fed[2][0, 0] - position, unshared[0], rtol=1e-3, atol=1e-5)
    assert torch.equal(heard.n_tokens, connector.max_tokens(features))


def test_audio_tokens_are_the_same_without_the_llm(tmp_path: Path) -> None:
    ear, sound = pocket_ear(), spoken()[0]["audio"]["bytes"]
    heard = ear.hear(sound)
    checkpoint.save(ear, tmp_path / "ear")
    alone = checkpoint.load(tmp_path / "ear", device="cpu", with_llm=False)
    torch.testing.assert_close(
        alone.hear(sound).to(heard.dtype), heard, rtol=0.01, atol=0.004
    )  # in half precision
    assert all(weight.is_meta for weight in alone.llm.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_embeddings_are_scaled_as_the_llm_s_first_layer_gets_them(dtype: torch.dtype) -> None:
    llm = copy.deepcopy(tiny_llama()).to(dtype)
    tokenizer = tiny_tokenizer("llama")
    found = build_shared_vocabulary(KNOWS, tiny_whisper(), llm, tokenizer)
    assert found is not None
    ids = [id_ for id_ in tokenizer.get_vocab().values() if id_ not in tokenizer.all_special_ids]
    distances = torch.cdist(found.llm_embeddings.float(), embed(llm, torch.tensor(ids)).float())
    assert distances.min(1).values.max() < 1e-2
