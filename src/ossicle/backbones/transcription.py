"""Transcription by Whisper's own decoder, without timestamps and by default greedily: the first half of the cascade."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ossicle.backbones.encoder import EncoderWindow, build_mel_batch
from ossicle.backbones.model_files import silence_transformers
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.whisper_prompt import encode_previous_text

ENGLISH = "en"


@dataclass(frozen=True)
class TranscriptSegment:
    """What was said in one window of a sound."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """What was said, and in which language."""

    text: str
    language: str
    """Code such as "de"."""
    segments: tuple[TranscriptSegment, ...] = ()
    """The windows in which something was said."""

    @property
    def language_name(self) -> str:
        """The language's English name in small letters, as OpenAI's server writes it."""
        return LANGUAGES.get(self.language, self.language)


@torch.inference_mode()
def transcribe_windows(
    whisper: Whisper,
    sounds: Sequence[np.ndarray],
    languages: Sequence[str | None],
    *,
    previous: str = "",
    temperature: float = 0.0,
) -> list[Transcript]:
    """Transcribes sounds at 16 kHz, each at most as long as the encoder's window.

    Args:
        languages: the language of each sound; None to detect it
        previous: a text that came before each sound: Whisper continues its style and spelling
        temperature: of sampling; 0 is greedy

    Raises:
        RequestError: a previous text that holds control tokens, or a Whisper that takes none
    """
    model, prompt = whisper.model, whisper.prompt
    mel, _ = build_mel_batch(
        sounds, whisper.config.num_mel_bins, EncoderWindow(whisper.window_frames, "full")
    )
    options = build_generation_config(whisper)
    before: dict[str, Any] = {}
    if previous.strip():
        ids = encode_previous_text(whisper.tokenizer, previous)
        before["prompt_ids"] = torch.tensor(ids, device=model.device)
    with silence_transformers():  # its warnings are about flags in published Whispers' configs
        encoded = model.model.encoder(mel.to(model.device, model.dtype))
        spoken: dict[str, Any] = {}
        if prompt.languages:
            if None in languages:
                codes = {id_: code for code, id_ in prompt.languages.items()}
                ids = model.detect_language(encoder_outputs=encoded, generation_config=options).tolist()
                languages = [given or codes[id_] for given, id_ in zip(languages, ids, strict=True)]
            spoken = {"task": "transcribe", "language": [f"<|{code}|>" for code in languages]}
        ids = model.generate(
            encoder_outputs=encoded,
            attention_mask=torch.ones_like(mel[:, 0], dtype=torch.long, device=model.device),
            generation_config=options,
            temperature=temperature,
            **spoken,
            **before,
        )
    texts = whisper.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [
        Transcript(text.strip(), language or ENGLISH) for text, language in zip(texts, languages, strict=True)
    ]


def build_generation_config(whisper: Whisper) -> GenerationConfig:
    """Returns the Whisper's own generation settings, with its prompt in the form that `generate` reads."""
    options: Any = copy.deepcopy(whisper.model.generation_config)
    prompt = whisper.prompt
    options.language = options.task = options.forced_decoder_ids = None
    options.is_multilingual = prompt.is_multilingual
    if prompt.is_multilingual:
        options.lang_to_id = {f"<|{code}|>": id_ for code, id_ in prompt.languages.items()}
        options.task_to_id = {"transcribe": prompt.transcribe}
    if prompt.no_timestamps is not None:
        options.no_timestamps_token_id = prompt.no_timestamps
    options.return_timestamps = False
    options.max_length = options.max_length or whisper.config.max_target_positions
    return options
