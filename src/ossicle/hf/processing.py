"""Messages with sound -> the tensors of a prompt: ids with one placeholder for each sound, and its spectrograms.

The ids are those of the ear's own chat template, so that the model answers as `Ear.chat` does.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import BatchFeature, PreTrainedTokenizerBase, WhisperConfig, WhisperFeatureExtractor
from transformers.processing_utils import ProcessorMixin

from ossicle import checkpoint
from ossicle.atomic_io import write_text
from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE, AudioSource, locate_windows
from ossicle.backbones.encoder import FRAMES_PER_POSITION, EncoderWindow, build_mel_batch
from ossicle.backbones.pretrained import build_meta_whisper, load_tokenizer
from ossicle.chat.messages import parse_conversation
from ossicle.chat.prompt_segments import Segment, TextSegment
from ossicle.chat.template import ChatTemplate
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError, ConfigError, RequestError
from ossicle.hf.remote_audio import read_audio_part
from ossicle.settings_io import from_table, to_table
from ossicle.text_encoding import read_text_file
from ossicle.transformers_files import AUTO_MAP

AUDIO_TOKEN = "<|audio|>"
PROCESSOR_CONFIG = "processor_config.json"
_IGNORED = {
    "return_tensors",
    "padding",
    "padding_side",
    "return_attention_mask",
    "sampling_rate",
    "processor_kwargs",
}
_RENDERED = {"chat_template", "tools", "documents", "continue_final_message", "add_generation_prompt"}
"""Arguments of apply_chat_template that change what is rendered, and that the ear's template does not take."""


class OssicleProcessor(ProcessorMixin):
    """A Whisper's feature extractor and an LLM's tokenizer, with the chat template that the ear was trained with.

    Args:
        settings: those of the ear
    """

    def __init__(
        self,
        feature_extractor: WhisperFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        settings: EarSettings,
    ) -> None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, special=True, normalized=False)], special_tokens=True)
        super().__init__(feature_extractor, tokenizer)
        self.settings = settings
        self.template = ChatTemplate(tokenizer, settings.prompt)
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id: int = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)  # ty: ignore[invalid-assignment]

    @classmethod
    def from_ear(cls, ear: Ear) -> "OssicleProcessor":
        """Returns the processor of an ear in memory."""
        return cls(_build_extractor(ear.whisper.config), ear.tokenizer, ear.settings)

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Loads the processor of an ear, or one that `save_pretrained` wrote.

        Raises:
            CheckpointError: not an ear, or backbones that cannot be found
        """
        own = Path(pretrained_model_name_or_path) / PROCESSOR_CONFIG
        if own.is_file() and not checkpoint.is_ear(str(pretrained_model_name_or_path)):
            settings = _read_settings(own)
        else:
            known = {name: kwargs[name] for name in ("revision", "token") if kwargs.get(name)}
            settings = checkpoint.read_settings(str(pretrained_model_name_or_path), **known)
        base = settings.base
        whisper = build_meta_whisper(base.encoder, base.encoder_revision)
        return cls(_build_extractor(whisper.config), load_tokenizer(base.llm, base.llm_revision), settings)

    def save_pretrained(  # ty: ignore[incompatible-method-override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> list[str]:
        """Writes what names the processor: tokenizer and feature extractor are those of the backbones."""
        if kwargs.get("push_to_hub"):
            self.push_to_hub(str(kwargs.get("repo_id") or Path(save_directory).name))
        path = Path(save_directory) / PROCESSOR_CONFIG
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")
        return [str(path)]

    def push_to_hub(self, repo_id: str, **_: Any) -> Any:
        """Refuses: the ear itself is what its processor is loaded from.

        Raises:
            ConfigError: always
        """
        raise ConfigError(
            f"model.push_to_hub({repo_id!r}) uploads all that AutoProcessor needs: there is no processor to push"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what `save_pretrained` writes."""
        return {"processor_class": type(self).__name__, "auto_map": AUTO_MAP, **to_table(self.settings)}

    @property
    def model_input_names(self) -> list[str]:
        """The names of the tensors that the model takes."""
        return ["input_ids", "attention_mask", "input_features", "input_features_mask", "n_windows"]

    def apply_chat_template(  # ty: ignore[incompatible-method-override]
        self, conversation: Any, *, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """Returns a conversation, or several, as the tensors of a prompt, ready for the answer.

        Args:
            conversation: messages; a sound is a part {"type": "audio"} with "audio", "path" or "url"
            tokenize: returns text with placeholders if False, as transformers does
            kwargs: `return_dict=False` returns the ids alone; `sampling_rate` is that of bare arrays, 16,000 by
                default; other names are variables of the chat template

        Raises:
            RequestError: malformed messages, or an argument that an ear's template does not take
            AudioError: sound that cannot be decoded
        """
        is_batch = isinstance(conversation, list | tuple) and bool(conversation)
        is_batch = is_batch and not isinstance(conversation[0], Mapping)
        returns_dict = kwargs.pop("return_dict", False)
        for name in _RENDERED & kwargs.keys():
            given, expected = kwargs.pop(name), {"add_generation_prompt": True}.get(name)
            if given != expected and given not in (None, False):
                raise RequestError(
                    f"{name} is {given!r}, which an ear's chat template does not take: leave it out"
                )
        variables = {name: value for name, value in kwargs.items() if name not in _IGNORED}
        rate = kwargs.get("sampling_rate") or (kwargs.get("processor_kwargs") or {}).get("sampling_rate")
        template = self.template.with_variables(variables)
        parsed = [
            parse_conversation(_read_sounds(messages))
            for messages in (conversation if is_batch else [conversation])
        ]
        literals = [template.render_literals(one) for one in parsed]
        if not tokenize:
            texts = [self.audio_token.join(one) for one in literals]
            return texts if is_batch else texts[0]
        segments = [template.cut(one) for one in literals]
        sounds = [sound for one in parsed for sound in one.sounds]
        inputs = self._build_inputs(segments, _add_rate(sounds, rate))
        return inputs if returns_dict else inputs["input_ids"]

    def __call__(self, text: Any = None, audio: Any = None, **kwargs: Any) -> BatchFeature:
        """Returns rendered prompts and the sounds at their placeholders as tensors.

        Raises:
            RequestError: other than one sound for each placeholder
            AudioError: sound that cannot be decoded
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        sounds = [] if audio is None else list(audio) if isinstance(audio, list | tuple) else [audio]
        literals = [one.split(self.audio_token) for one in texts]
        n_placeholders = sum(map(len, literals)) - len(literals)
        if not texts or n_placeholders != len(sounds):
            raise RequestError(
                f"{len(sounds)} sounds for {n_placeholders} placeholders {self.audio_token} in {len(texts)} texts:"
                " expected one for each; apply_chat_template writes them"
            )
        return self._build_inputs(
            [self.template.cut(one) for one in literals], _add_rate(sounds, kwargs.get("sampling_rate"))
        )

    def _build_inputs(
        self, prompts: Sequence[Sequence[Segment]], sounds: Sequence[AudioSource]
    ) -> BatchFeature:
        rows = [
            [
                id_
                for part in segments
                for id_ in (part.ids if isinstance(part, TextSegment) else [self.audio_token_id])
            ]
            for segments in prompts
        ]
        longest = max(map(len, rows))
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        data = {
            "input_ids": torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        return BatchFeature({**data, **self._extract_features(sounds)})

    def _extract_features(self, sounds: Sequence[AudioSource]) -> dict[str, torch.Tensor]:
        """Returns the spectrograms of all sounds' windows, and the number of windows of each sound."""
        if not sounds:
            return {}
        extractor = self.feature_extractor
        n_samples = extractor.nb_max_frames * HOP_LENGTH
        windows = [
            [window for _, window in locate_windows(load_speech(sound), n_samples)] for sound in sounds
        ]
        mel, n_frames = build_mel_batch(
            [window for own in windows for window in own],
            extractor.feature_size,
            EncoderWindow.build(extractor.nb_max_frames, self.settings.base),
        )
        mask = torch.arange(mel.shape[2]) < n_frames[:, None]
        n_windows = torch.tensor([len(own) for own in windows])
        return {"input_features": mel, "input_features_mask": mask.long(), "n_windows": n_windows}


def _add_rate(sounds: Sequence[Any], rate: int | None) -> list[AudioSource]:
    """Returns sounds with the rate of those that are bare arrays: by default, Whisper's."""
    return [
        sound if isinstance(sound, str | bytes | os.PathLike | tuple) else (sound, rate or SAMPLE_RATE)
        for sound in sounds
    ]


def _read_settings(path: Path) -> EarSettings:
    try:
        table = json.loads(read_text_file(path))
        return from_table(EarSettings, {name: table[name] for name in ("base", "prompt", "connector")})
    except (OSError, ValueError, RecursionError, TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is damaged, or no processor of an ear ({error}): save the processor again, or name the ear"
        ) from error


def _build_extractor(config: WhisperConfig) -> WhisperFeatureExtractor:
    n_samples = config.max_source_positions * FRAMES_PER_POSITION * HOP_LENGTH
    return WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=n_samples // SAMPLE_RATE)


def _read_sounds(messages: Any) -> Any:
    """Returns messages with what their sounds name in place of "path" and "url"; others are returned unchanged."""
    if not isinstance(messages, list | tuple):
        return messages
    return [
        {**message, "content": [read_audio_part(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple)
        else message
        for message in messages
    ]
