"""An ear as a model of transformers: generate takes the processor's tensors and returns the answer's tokens.

Sounds have as many audio tokens as the connector finds, so prompts are ragged: their embeddings are built and padded on
the left here. What is generated from them, and how, is the same code as behind `Ear.chat`.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import GENERATION_CONFIG_NAME

from ossicle import checkpoint
from ossicle.backbones.causal_lm import get_eos_ids, get_input_embeddings
from ossicle.chat.generation import Prompt, generate_answer_ids, pad_left
from ossicle.chat.prompt_segments import AudioSegment, Segment, TextSegment
from ossicle.ear import Ear
from ossicle.errors import ConfigError, RequestError
from ossicle.hf.configuration import OssicleConfig
from ossicle.hf.processing import AUDIO_TOKEN, OssicleProcessor

_WINDOWS_PER_BATCH = 16
_NOT_OPTIONS = {"tokenizer", "inputs", "assistant_model", "use_model_defaults", "synced_gpus"}
"""Arguments of transformers' generate that are None or the ear's own."""
_PUSH_OPTIONS = ("private", "revision", "token", "metadata", "encoder", "llm")


class OssicleForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A frozen Whisper encoder, a trained connector and a frozen LLM."""

    config_class = OssicleConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]  # noqa: RUF012, as transformers has it
    output_modalities = ["text"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: OssicleConfig, ear: Ear | None = None) -> None:
        super().__init__(config)
        ear = ear or Ear.new(config.settings)
        self.ear = ear
        self.audio_tower = ear.whisper.model
        self.connector = ear.connector
        self.language_model = ear.llm
        self.generation_config = GenerationConfig()

    @classmethod
    def from_ear(cls, ear: Ear) -> "OssicleForConditionalGeneration":
        """Returns an ear in memory as a model."""
        return cls(OssicleConfig.from_ear(ear), ear)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *_: Any, **kwargs: Any) -> Any:
        """Loads an ear with its backbones.

        Args:
            kwargs: `dtype` of encoder and LLM, `device_map` (one device), `quantization_config` of bitsandbytes for the
                LLM, `revision`, `token`; others are ignored

        Raises:
            CheckpointError: not an ear, a damaged one, or other backbones than those that it was trained with
            ConfigError: several devices, a dtype that the device lacks, or a quantization other than bitsandbytes'
        """
        name, dtype = str(pretrained_model_name_or_path), kwargs.get("dtype", kwargs.get("torch_dtype"))
        known = {key: kwargs[key] for key in ("revision", "token") if kwargs.get(key)}
        ear = checkpoint.load(
            name,
            device=_read_device(kwargs.get("device_map")),
            dtype=None if dtype in (None, "auto") else str(dtype).removeprefix("torch."),
            llm_bits=_read_bits(kwargs.get("quantization_config")),
            **known,
        )
        config = kwargs.get("config")
        if not isinstance(config, OssicleConfig):
            config = OssicleConfig.from_pretrained(name, **known)
        model = cls(config, ear).eval()
        if (Path(name) / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(name)
        return model

    def save_pretrained(  # ty: ignore[incompatible-method-override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Writes the ear's folder: connector, names of the backbones, and how answers are generated."""
        if kwargs.get("push_to_hub"):
            raise ConfigError("push_to_hub is no option of an ear's save_pretrained: use model.push_to_hub")
        checkpoint.save(self.ear, Path(save_directory), fingerprints=self.config.fingerprints)
        if _list_options(self.generation_config):
            self.generation_config.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Uploads the ear with its model card and returns the address of the commit.

        Args:
            kwargs: `private`, `revision` and `token`; and those of `ossicle.push_to_hub`

        Raises:
            CheckpointError: backbones that only this computer has, a token without rights, or no network
            ConfigError: an option that is none of these
        """
        if unknown := kwargs.keys() - _PUSH_OPTIONS:
            raise ConfigError(
                f"{min(unknown)} is no option of an ear's push_to_hub, expected one of {', '.join(_PUSH_OPTIONS)}"
            )
        return self.ear.push_to_hub(repo_id, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves all parts, and changes the precision of all but the connector, which stays in float32 as trained."""
        for part in self.children():
            part._apply(
                fn if part is not self.connector else lambda weight: weight.to(fn(weight.new_empty(0)).device)
            )
        return self

    @cached_property
    def _audio_id(self) -> int:
        """The id of the processor's placeholder: behind all others, unless the LLM has such a token."""
        tokenizer = self.ear.tokenizer
        return tokenizer.get_vocab().get(AUDIO_TOKEN, len(tokenizer))

    def get_input_embeddings(self) -> Any:
        """Returns the LLM's table of input embeddings."""
        return get_input_embeddings(self.language_model)

    def get_audio_features(
        self,
        input_features: Float[Tensor, "W M F"],
        input_features_mask: Int[Tensor, "W F"],
        n_windows: Int[Tensor, " N"] | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Returns the audio tokens of each sound as `pooler_output`, a list of tensors of different lengths.

        Args:
            n_windows: windows of each sound; by default each is a sound
        """
        n_frames = input_features_mask.sum(1).cpu()
        tokens: list[Tensor] = []
        for start in range(0, len(input_features), _WINDOWS_PER_BATCH):
            part = slice(start, start + _WINDOWS_PER_BATCH)
            longest = int(n_frames[part].max())
            mel = input_features[part, :, :longest]
            with self.ear.autocast():
                tokens += self.ear.embed_features(self.ear.encode_mels(mel, n_frames[part]))
        counts = [1] * len(tokens) if n_windows is None else n_windows.tolist()
        rows = iter(tokens)
        sounds = [torch.cat([next(rows) for _ in range(count)]) for count in counts]
        return BaseModelOutputWithPooling(pooler_output=sounds)  # ty: ignore[invalid-argument-type]

    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Int[Tensor, "B _"] | None = None,
        inputs_embeds: Float[Tensor, "B L D"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the LLM's output for prompts, whose sounds are as long as the connector finds, padded on the left."""
        if inputs_embeds is None and input_ids is not None:
            sound = {
                name: kwargs.pop(name, None)
                for name in ("input_features", "input_features_mask", "n_windows")
            }
            batch = pad_left(self._build_prompts(input_ids, attention_mask, **sound))
            inputs_embeds, attention_mask = batch.embeds, batch.mask
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Int[Tensor, "B L"] | None = None,
        input_features: Float[Tensor, "W M F"] | None = None,
        input_features_mask: Int[Tensor, "W F"] | None = None,
        n_windows: Int[Tensor, " N"] | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> Int[Tensor, "B T"]:
        """Returns the new tokens of each answer, padded behind its end; greedy by default, as `Ear.chat`.

        `transformers serve` gives the processor as tokenizer and cuts as many tokens off as the prompt has: for it, the
        prompt stands in front.

        Args:
            options: those of transformers' generate that concern one answer for each prompt

        Raises:
            RequestError: an option that has no place here, or a prompt that exceeds the LLM's context
        """
        if input_ids is None:
            raise RequestError(
                "input_ids is missing: processor.apply_chat_template(..., return_dict=True) has it"
            )
        if streamer is not None and len(input_ids) > 1:
            raise RequestError(f"a streamer takes one prompt, not {len(input_ids)}: send them one by one")
        given = {
            name: value for name, value in options.items() if name not in _NOT_OPTIONS and value is not None
        }
        resolved = {**_list_options(self.generation_config), **_list_options(generation_config), **given}
        prompts = self._build_prompts(
            input_ids, attention_mask, input_features, input_features_mask, n_windows
        )
        rows = generate_answer_ids(
            self.language_model,
            self.ear.tokenizer,
            prompts,
            streamer=None if streamer is None else _NewTokens(streamer),
            **resolved,
        )
        longest = max(map(len, rows))
        pad_id = next(iter(get_eos_ids(self.language_model, self.ear.tokenizer)), 0)
        padded = [row + [pad_id] * (longest - len(row)) for row in rows]
        answers = torch.tensor(padded, device=input_ids.device)
        is_cut = streamer is None and isinstance(options.get("tokenizer"), OssicleProcessor)
        return torch.cat([input_ids, answers], dim=1) if is_cut else answers

    def _build_prompts(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"] | None,
        input_features: Float[Tensor, "W M F"] | None = None,
        input_features_mask: Int[Tensor, "W F"] | None = None,
        n_windows: Int[Tensor, " N"] | None = None,
    ) -> list[Prompt]:
        audio: list[Tensor] = []
        if input_features is not None:
            mask = input_features_mask
            if mask is None:
                mask = torch.ones_like(input_features[:, 0], dtype=torch.long)
            output = self.get_audio_features(input_features, mask, n_windows)
            audio = list(output.pooler_output)  # ty: ignore[invalid-argument-type]
        is_prompt = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [row[keep.bool()].tolist() for row, keep in zip(input_ids, is_prompt, strict=True)]
        n_placeholders = sum(row.count(self._audio_id) for row in rows)
        if n_placeholders != len(audio):
            raise RequestError(
                f"{len(audio)} sounds for {n_placeholders} placeholders in input_ids: expected one for each, as the"
                " processor gives them"
            )
        tokens = iter(audio)
        prompts = []
        for row in rows:
            segments = list(_split_at(row, self._audio_id))
            n_sounds = sum(isinstance(segment, AudioSegment) for segment in segments)
            prompts.append(self.ear.build_prompt(segments, [next(tokens) for _ in range(n_sounds)]))
        return prompts


class _NewTokens(BaseStreamer):
    """Gives a streamer an empty prompt, as transformers does for prompts of embeddings, and then the new tokens."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer, self.has_prompt = streamer, False

    def put(self, value: Tensor) -> None:
        """Takes the next tokens; the first call brings the prompt."""
        self.streamer.put(value if self.has_prompt else value[:, :0])
        self.has_prompt = True

    def end(self) -> None:
        """Ends the streamer."""
        self.streamer.end()


def _split_at(ids: list[int], audio_id: int) -> Iterator[Segment]:
    """Yields ids as text and, for each placeholder, audio."""
    text: list[int] = []
    index = 0
    for id_ in ids:
        if id_ != audio_id:
            text.append(id_)
            continue
        if text:
            yield TextSegment(tuple(text))
        yield AudioSegment(index)
        text, index = [], index + 1
    if text:
        yield TextSegment(tuple(text))


def _list_options(config: GenerationConfig | None) -> dict[str, Any]:
    """Returns what a generation config sets."""
    if config is None:
        return {}
    unset = {"transformers_version", "_from_model_config", "return_dict_in_generate"}
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if name not in unset and value is not None and not name.startswith(("_", "output_"))
    }


def _read_device(device_map: Any) -> str | None:
    if isinstance(device_map, dict):
        places = {str(place) for place in device_map.values()}
        if len(places) != 1:
            raise ConfigError(
                f"device_map has {len(places)} devices, but an ear takes one: use device_map='cuda'"
            )
        device_map = places.pop()
    if device_map is None or device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    name = str(device_map)
    return f"cuda:{name}" if name.isdigit() else name


def _read_bits(quantization: Any) -> int:
    if quantization is None:
        return 16
    if getattr(quantization, "load_in_8bit", False):
        return 8
    if getattr(quantization, "load_in_4bit", False):
        return 4
    raise ConfigError(
        f"quantization_config is a {type(quantization).__name__}, expected BitsAndBytesConfig with 8 or 4 bits"
    )
