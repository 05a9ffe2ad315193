"""A trained ear of form `autoregressive` as an ordinary Whisper, for people who only transcribe.

Such an ear is Whisper's decoder with a learned query at each position and a learned feedback of the token before. Both
are sums of what Whisper adds there itself, so they go into its tables of positions and tokens. It knows the ear and
transformers' Whisper; what the ear adds for its LLM has no place there and is left out.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from ossicle.atomic_io import atomic_write
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.model_files import silence_transformers
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.transcription import build_generation_config
from ossicle.base_paths import name_base
from ossicle.connectors.autoregressive import AutoregressiveConnector
from ossicle.connectors.vocabulary_overlap import (
    list_prompt_ids,
    list_unshared_ids,
    match_shared_tokens,
)
from ossicle.ear import Ear
from ossicle.errors import CheckpointError

_MIN_CONDITION = 1e-4
"""Smallest share of the final norm's shift that may carry the bias of the end: below it, rounding would be larger."""


def export_whisper(ear: Ear, folder: Path) -> None:
    """Writes the folder of a Whisper as transformers has it: configs, tokenizer, feature extractor, weights, card.

    Raises:
        CheckpointError: an ear of another form, or a folder that cannot be written to
    """
    whisper = fold_into_whisper(ear)
    extractor = WhisperFeatureExtractor(
        feature_size=whisper.config.num_mel_bins, chunk_length=whisper.window_samples // SAMPLE_RATE
    )
    with atomic_write(folder, is_folder=True) as temporary, silence_transformers():
        whisper.model.save_pretrained(temporary)
        whisper.tokenizer.save_pretrained(temporary)
        extractor.save_pretrained(temporary)
        (temporary / "README.md").write_text(_build_card(ear), encoding="utf-8")


@torch.no_grad()
def fold_into_whisper(ear: Ear) -> Whisper:
    """Returns a Whisper whose decoder computes what the ear's connector computes after the same words.

    Its input embeddings differ from its output ones: the learned feedback is a part of the former only.

    Raises:
        CheckpointError: an ear of another form
    """
    connector, base = ear.connector, ear.whisper
    if not isinstance(connector, AutoregressiveConnector) or connector.vocabulary_head is None:
        raise CheckpointError(
            f"this ear has form {ear.settings.connector.form} and init {ear.settings.connector.init}, whose decoder"
            " writes no words of Whisper's: expected form autoregressive started from Whisper"
        )
    config = copy.deepcopy(base.config)
    config.decoder_layers, config.tie_word_embeddings = len(connector.layers), False
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, dtype=torch.float32)
    parts = {
        "model.encoder.": base.model.model.encoder.state_dict(),
        "model.decoder.layers.": connector.layers.state_dict(),
        "model.decoder.layer_norm.": connector.layer_norm.state_dict(),
        "": {
            "model.decoder.embed_positions.weight": _fold_queries(connector, base),
            "model.decoder.embed_tokens.weight": _fold_feedback(connector, ear),
            "proj_out.weight": _fold_end(connector, base),
        },
    }
    weights = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    model.load_state_dict({name: tensor.float().cpu() for name, tensor in weights.items()}, assign=True)
    model.generation_config = _build_generation_config(connector, base)
    return Whisper(model=model.requires_grad_(False).eval(), tokenizer=base.tokenizer)


def _build_generation_config(connector: AutoregressiveConnector, base: Whisper) -> GenerationConfig:
    options: Any = build_generation_config(base)
    n_most = connector.n_prompt + 1 + len(connector.queries)
    options.max_length = min(n_most, base.config.max_target_positions)
    if base.prompt.is_multilingual:
        options.task = "transcribe"
        options.language = next(iter(base.prompt.languages)) if len(base.prompt.languages) == 1 else None
    if len(connector.layers) != base.config.decoder_layers:
        options.alignment_heads = None  # they are numbers of layers
    return options


def _token_table(whisper: Whisper) -> Float[Tensor, "V E"]:
    return whisper.model.model.decoder.embed_tokens.weight.detach().float().clone()


def _fold_queries(connector: AutoregressiveConnector, base: Whisper) -> Float[Tensor, "P E"]:
    """Returns positions that hold the learned prompt and queries, less the tokens that Whisper adds to them itself.

    Positions that the ear never reaches are the base's.
    """
    assert connector.prompt_embeddings is not None
    tokens = _token_table(base)
    n_prompt, ids = connector.n_prompt, list_prompt_ids(base)
    learned = connector.positions.detach().clone()
    learned[:n_prompt] += connector.prompt_embeddings
    learned[n_prompt:] += connector.queries
    for row, id_ in enumerate(ids):
        if id_ is not None:
            learned[row] -= tokens[id_]
    positions = base.model.model.decoder.embed_positions.weight.detach().float().clone()
    learned = learned[: len(positions)]
    positions[: len(learned)] = learned
    return positions


def _fold_feedback(connector: AutoregressiveConnector, ear: Ear) -> Float[Tensor, "V E"]:
    """Returns the decoder's input embeddings: Whisper's own plus the feedback of the same token of the LLM.

    The ear feeds back its audio token, which may lie between words; in training, as here, it is the word itself.
    """
    head = connector.vocabulary_head
    assert head is not None
    pairs = match_shared_tokens(ear.whisper, ear.tokenizer, get_input_embeddings(ear.llm).num_embeddings)
    shared_ids = [whisper_id for _, whisper_id in pairs]
    table = _token_table(ear.whisper)
    table[shared_ids] += connector.feedback(head.llm_embeddings)
    pieces, n_pieces = head.embed_pieces(torch.arange(len(head.other_pieces), device=table.device))
    is_written = n_pieces > 0
    last = pieces[is_written, n_pieces[is_written] - 1]
    other_ids = torch.tensor(
        list_unshared_ids(ear.whisper, shared_ids), dtype=torch.long, device=table.device
    )
    table[other_ids[is_written]] += connector.feedback(last)
    return table


def _fold_end(connector: AutoregressiveConnector, base: Whisper) -> Float[Tensor, "V E"]:
    """Returns the output embeddings: Whisper's own, with what is learned about the end in that of its token.

    Whisper's output layer has no bias. Behind the final norm, whose states have a sum of zero before scale and shift,
    one direction has the same product with every state: it takes the place of a bias.
    """
    head = connector.vocabulary_head
    assert head is not None
    sharpness = head.log_sharpness.exp()
    end = connector.end_head.weight[0] / sharpness
    scale, shift = connector.layer_norm.weight, connector.layer_norm.bias
    constant = shift / scale
    if constant.sum().abs() > _MIN_CONDITION * constant.abs().sum():
        end = end + connector.end_head.bias / sharpness / constant.sum() / scale
    table = _token_table(base)
    table[base.config.eos_token_id] += end
    return table


def _build_card(ear: Ear) -> str:
    base = ear.settings.base
    return (
        f"# {name_base(base.encoder)}, as an ear heard it\n\n"
        f"The Whisper in an ear that was trained for `{name_base(base.llm)}`, written by `ossicle export whisper`. It"
        " transcribes without\ntimestamps:\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        'transcribe = pipeline("automatic-speech-recognition", model="this folder")\n'
        'print(transcribe("speech.wav")["text"])\n```\n'
    )
