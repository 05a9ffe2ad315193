"""An ear of form autoregressive as an ordinary Whisper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_ear, tiny_llama, tiny_whisper
from support.tiny_tokenizers import tiny_tokenizer
from torch.testing import assert_close
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.model_files import silence_transformers
from ossicle.backbones.pretrained import Whisper
from ossicle.config import BaseSettings
from ossicle.connectors import Transcripts
from ossicle.ear import Ear
from ossicle.errors import CheckpointError
from ossicle.exchange.whisper import export_whisper, fold_into_whisper


def trained_ear(whisper: Whisper | None = None, **sizes: Any) -> Ear:
    """An ear whose every learned part does something, the bias of the end too; it decides between single words."""
    tokenizer = tiny_tokenizer("gemma")
    base = BaseSettings(encoder="tiny/whisper", llm="tiny/llm", encoder_window="full")
    llm = tiny_llama(tokenizer)
    ear = tiny_ear("autoregressive", whisper=whisper, llm=llm, tokenizer=tokenizer, base=base, **sizes)
    torch.manual_seed(5)
    connector: Any = ear.connector
    with torch.no_grad():
        for name, weight in connector.named_parameters():
            if name != "vocabulary_head.log_sharpness":
                weight += 0.1 * torch.randn_like(weight)
        connector.end_head.bias.fill_(2.0)
    return ear


def multilingual() -> Whisper:
    whisper = tiny_whisper()
    options: Any = whisper.model.generation_config
    options.is_multilingual = True
    options.lang_to_id = {"<|de|>": 5, "<|en|>": 3, "<|fr|>": 4}
    options.task_to_id = {"transcribe": 7, "translate": 6}
    return whisper


def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(n).astype(np.float32) for n in (16_000, 40_000, 70_000)]


@pytest.mark.parametrize("sizes", [{}, {"n_layers": 1}, {"n_queries": 20}])
def test_after_the_same_words_it_has_the_ears_logits(sizes: dict[str, Any]) -> None:
    ear = trained_ear(**sizes)
    head: Any = ear.connector.vocabulary_head
    folded = fold_into_whisper(ear)
    features = ear.encode_sounds(sounds())
    torch.manual_seed(0)
    index = torch.randint(len(head.llm_embeddings), (3, 9))
    transcripts = Transcripts(torch.full((3,), 9), index, head.llm_embeddings)
    written = ear.connector(features, transcripts)
    ids = head.nearest_tokens(head.llm_embeddings).index[index]  # equal embeddings have one token
    whisper_ids = whisper_ids_of(ear)
    prompt = torch.tensor([[folded.prompt.start, folded.prompt.no_timestamps]]).expand(3, -1)
    output = folded.model(
        encoder_outputs=(features.states,), decoder_input_ids=torch.cat([prompt, whisper_ids[ids]], 1)
    )
    logits = output.logits[:, 1:]
    n_shared = len(head.llm_embeddings)
    assert_close(logits[:, :-1, whisper_ids], written.word_logits[..., :n_shared], rtol=1e-4, atol=1e-4)
    sharpness = head.log_sharpness.exp()
    end = (sharpness * logits[..., folded.config.eos_token_id]) - (sharpness * words(ear, logits)).logsumexp(
        -1
    )
    assert_close(end, written.end_logits, rtol=1e-3, atol=1e-3)


def whisper_ids_of(ear: Ear) -> torch.Tensor:
    """Whisper's ids of the vocabulary head's words, found by their embeddings."""
    head: Any = ear.connector.vocabulary_head
    table = ear.whisper.model.model.decoder.embed_tokens.weight
    return torch.cdist(head.decoder_embeddings, table).argmin(1)


def words(ear: Ear, logits: torch.Tensor) -> torch.Tensor:
    """The logits of all tokens that the ear may write."""
    head: Any = ear.connector.vocabulary_head
    table = ear.whisper.model.model.decoder.embed_tokens.weight
    others = torch.cdist(head.other_decoder_embeddings, table).argmin(1)
    return logits[..., torch.cat([whisper_ids_of(ear), others])]


@pytest.mark.parametrize("make", [tiny_whisper, multilingual])
def test_transformers_reads_it_and_writes_the_ears_words(make: Any, tmp_path: Path) -> None:
    whisper = make()
    special = set(whisper.tokenizer.all_special_ids) - {whisper.config.eos_token_id}
    whisper.model.generation_config.suppress_tokens = sorted(special)  # a random Whisper would write them
    ear = trained_ear(whisper)
    connector: Any = ear.connector
    with torch.no_grad():  # what has no place in a Whisper
        for part in (connector.projection, connector.feedback.token):
            part[2].weight.zero_()
            part[2].bias.zero_()
        connector.vocabulary_head.log_sharpness.fill_(6.0)
        connector.end_head.bias.fill_(-300.0)
    export_whisper(ear, tmp_path / "folded")
    with silence_transformers():
        model: Any = WhisperForConditionalGeneration.from_pretrained(tmp_path / "folded").eval()
        processor: Any = WhisperProcessor.from_pretrained(tmp_path / "folded")
        inputs = processor(sounds(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=8)
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    own = ear.transcribe_audio_tokens([(sound, SAMPLE_RATE) for sound in sounds()])
    for text, expected in zip(texts, own, strict=True):
        assert text.strip()
        assert expected.startswith(text.strip())


def test_other_forms_are_refused() -> None:
    with pytest.raises(CheckpointError, match="form query and init whisper"):
        fold_into_whisper(tiny_ear("query"))
    with pytest.raises(CheckpointError, match="form autoregressive and init random"):
        fold_into_whisper(tiny_ear("autoregressive", init="random"))
