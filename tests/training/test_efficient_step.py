"""The efficient training step against a plain one: the same loss, the same gradients.

The plain step takes one clip at a time, without padding, caches, packing or gathering: transformers' own encoder, the
teacher from ids, and the student from one whole prompt of embeddings.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_families import tiny_llm
from support.tiny_models import tiny_ear
from torch import Tensor
from torch.nn import functional
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ossicle.audio.mel import log_mel_spectrogram
from ossicle.backbones.causal_lm import embed
from ossicle.backbones.encoder import Features, count_frames
from ossicle.config import ObjectiveSettings
from ossicle.connectors import Transcripts
from ossicle.connectors.layers import TOKEN_TEMPERATURE
from ossicle.ear import Ear
from ossicle.training.batch import Clip, build_batch, build_microbatch
from ossicle.training.distillation import distillation_loss
from ossicle.training.teacher import Teacher

RTOL = 1e-5
"""Relative to the loss, and to the gradient's norm: float32 sums in another order."""
TEXTS = ("what is the capital of france?", "yes", "a cold day in a small town", "two cats")
SECONDS = (2.4, 0.3, 3.1, 1.0)
FORMS = [
    (form, positions)
    for form in ("anchored", "query", "diva")
    for positions in ("last", "suffix", "all")
    if (form, positions) != ("diva", "all")  # which has no audio token for each of the transcript
]


def build_ear(family: str, form: str) -> Ear:
    llm, tokenizer = tiny_llm(family)
    if getattr(llm.config, "sliding_window", None):
        llm.config.sliding_window = 256
    ear = tiny_ear(form, llm=llm, tokenizer=tokenizer, n_queries=48)
    assert ear.packed_llm.prefix_cache is not None
    assert ear.packed_llm.gathers_last_layer
    return ear


def build_sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(int(s * 16_000)).astype(np.float32) for s in SECONDS]


def ids_of(ear: Ear) -> list[Tensor]:
    return [torch.tensor(ear.template.split_prompt(text).text) for text in TEXTS]


def compute_efficient_terms(ear: Ear, objective: ObjectiveSettings) -> dict[str, Tensor]:
    mels = [log_mel_spectrogram(sound, 80, min(600, count_frames(len(sound)))) for sound in build_sounds()]
    clips = [Clip(ids=ids, mel=mel, states=None) for ids, mel in zip(ids_of(ear), mels, strict=True)]
    teacher = Teacher(ear, objective)
    return distillation_loss(ear, build_batch(ear, build_microbatch(clips)), objective, teacher=teacher).terms


def encode_with_transformers(ear: Ear, sound: np.ndarray) -> Features:
    """Returns features by transformers' own forward, with a window exactly as long as the sound."""
    own = ear.whisper.model.model.encoder
    mel = log_mel_spectrogram(sound, 80, min(600, count_frames(len(sound))))
    n = mel.shape[1] // 2
    config = copy.deepcopy(own.config)
    config.max_source_positions = n
    short = WhisperEncoder(config).eval()
    weights = own.state_dict()
    short.load_state_dict({**weights, "embed_positions.weight": weights["embed_positions.weight"][:n]})
    with torch.no_grad():
        return Features(short(mel[None]).last_hidden_state, torch.ones(1, n, dtype=torch.bool))


def compute_plain_terms(ear: Ear, objective: ObjectiveSettings) -> dict[str, Tensor]:
    frame = ear.template.frame
    texts = ids_of(ear)
    candidates = torch.cat(texts).unique()
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        sums.setdefault(name, []).append(values.flatten())

    for sound, ids in zip(build_sounds(), texts, strict=True):
        target_ids = torch.searchsorted(candidates, ids)[None]
        table = embed(ear.llm, candidates)
        audio = ear.connector(
            encode_with_transformers(ear, sound), Transcripts(torch.tensor([len(ids)]), target_ids, table)
        )
        audio_tokens = audio.tokens[0] if ear.connector.alignment == "right" else audio.tokens[0, : len(ids)]
        aligned = audio_tokens[-len(ids) :]
        text = embed(ear.llm, ids)
        add("align", (aligned - text).norm(dim=1))
        distances = torch.cdist(aligned, table).square()
        spread = (table - table.mean(0)).square().sum(1).mean()
        logits = -distances / (TOKEN_TEMPERATURE * spread)
        add("token_ce", functional.cross_entropy(logits, target_ids[0], reduction="none"))
        if audio.end_logits is not None:
            ends = torch.tensor([0.0] * len(ids) + [1.0])
            add(
                "end",
                functional.binary_cross_entropy_with_logits(audio.end_logits[0], ends, reduction="none"),
            )
        whole = torch.cat([embed(ear.llm, frame.prefix), audio_tokens, embed(ear.llm, frame.suffix)])[None]
        student = ear.llm.base_model(inputs_embeds=whole).last_hidden_state[0]
        read = torch.tensor([[*frame.prefix, *ids.tolist(), *frame.suffix]])
        with torch.no_grad():
            teacher = ear.llm.base_model(input_ids=read).last_hidden_state[0]
        n = {"last": 1, "suffix": len(frame.suffix), "all": len(ids) + len(frame.suffix)}
        n_compared = n[objective.hidden_positions]
        add("hidden", (student[-n_compared:] - teacher[-n_compared:]).norm(dim=1).mean())
        if audio.log_likelihood is not None:
            add("asr", -audio.log_likelihood)
    terms = {name: torch.cat(values).mean() for name, values in sums.items()}
    if "asr" in terms:
        terms["asr"] = terms["asr"] * len(texts) / sum(map(len, texts))
    return terms


def compute_gradients(ear: Ear, terms: dict[str, Tensor], objective: ObjectiveSettings) -> Tensor:
    ear.connector.zero_grad()
    torch.stack([objective.term_weights[name] * term for name, term in terms.items()]).sum().backward()
    gradients: list[Any] = [weight.grad for weight in ear.connector.parameters()]
    return torch.cat([torch.zeros(0), *(each.flatten() for each in gradients if each is not None)])


@pytest.mark.parametrize(("form", "positions"), FORMS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_efficient_step_equals_the_plain_one(family: str, form: str, positions: Any) -> None:
    ear = build_ear(family, form)
    objective = ObjectiveSettings(hidden_positions=positions, token_ce_weight=0.5)
    terms, expected = compute_efficient_terms(ear, objective), compute_plain_terms(ear, objective)
    assert set(terms) == set(expected)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=RTOL, atol=0)
    expected_gradients = compute_gradients(ear, expected, objective)
    assert (
        compute_gradients(ear, terms, objective) - expected_gradients
    ).norm() <= RTOL * expected_gradients.norm()
