"""Sizes of real models, smaller ones of the same proportions, and backbones of random weights in these sizes.

Only the tokenizer that comes with ossicle is read, so that everyone can run the benchmarks: speed depends on the sizes
of weights, not on their values.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import FRAMES_PER_POSITION
from ossicle.backbones.model_files import silence_transformers
from ossicle.backbones.pretrained import Whisper, get_frozen_dtype, load_tokenizer
from ossicle.config import (
    BaseSettings,
    ConnectorSettings,
    PromptSettings,
)
from ossicle.connectors import build_connector
from ossicle.connectors.vocabulary_head import SharedVocabulary
from ossicle.ear import Ear, EarSettings

TOKENS_PER_SECOND = 2.8
"""Tokens in a second of read English: 14 in a clip of 5 s."""
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|user|>\n\n' if message.role == 'user' else '<|assistant|>' }}"
    "{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|> the answer is{% endif %}"
)
"""A chat template as long as Llama 3's."""
N_PREFIX, N_SUFFIX = 5, 5
"""Tokens of the template before and after the user's content."""
CONNECTOR = ConnectorSettings(form="anchored", n_queries=256)
"""A connector of form anchored, with as many queries as that of recipes/llama-3.1-8b.toml."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Whisper and a Llama."""

    name: str
    d_encoder: int
    n_encoder_layers: int
    n_decoder_layers: int
    d_llm: int
    n_llm_layers: int
    n_vocabulary: int
    n_mels: int = 128
    n_encoder_positions: int = 1500
    """Positions of the encoder's full window; 1500 are 30 s."""
    n_decoder_positions: int = 448
    """Positions of Whisper's decoder: the most audio tokens of the forms with a fixed number."""

    @property
    def window_s(self) -> float:
        """Length of the encoder's full window."""
        return self.n_encoder_positions * FRAMES_PER_POSITION * HOP_LENGTH / SAMPLE_RATE

    @property
    def whisper_config(self) -> WhisperConfig:
        """A Whisper of these sizes: heads of 64 and an FFN four times as wide, as all have."""
        return WhisperConfig(
            vocab_size=2_569,
            num_mel_bins=self.n_mels,
            d_model=self.d_encoder,
            encoder_layers=self.n_encoder_layers,
            encoder_attention_heads=self.d_encoder // 64,
            encoder_ffn_dim=4 * self.d_encoder,
            decoder_layers=self.n_decoder_layers,
            decoder_attention_heads=self.d_encoder // 64,
            decoder_ffn_dim=4 * self.d_encoder,
            max_source_positions=self.n_encoder_positions,
            max_target_positions=self.n_decoder_positions,
            pad_token_id=2_560,
            bos_token_id=2_560,
            eos_token_id=2_560,
            decoder_start_token_id=2_561,
        )

    @property
    def llama_config(self) -> LlamaConfig:
        """A Llama of these sizes: heads of 128, four query heads per key head, an FFN 3.5 times as wide, as Llama 3 8B.

        Input and output embeddings are tied: training needs no logits, and this saves memory.
        """
        return LlamaConfig(
            vocab_size=self.n_vocabulary,
            hidden_size=self.d_llm,
            intermediate_size=self.d_llm * 7 // 2,
            num_hidden_layers=self.n_llm_layers,
            num_attention_heads=self.d_llm // 128,
            num_key_value_heads=self.d_llm // 512,
            max_position_embeddings=8_192,
            tie_word_embeddings=True,
            bos_token_id=2_560,
            eos_token_id=2_561,
            pad_token_id=2_562,
        )


_LARGE = Shape(
    name="large-v3",
    d_encoder=1280,
    n_encoder_layers=32,
    n_decoder_layers=32,
    d_llm=4096,
    n_llm_layers=32,
    n_vocabulary=128_256,
)
SHAPES = {
    shape.name: shape
    for shape in (
        _LARGE,
        replace(_LARGE, name="turbo", n_decoder_layers=4),
        Shape(
            name="small",
            d_encoder=320,
            n_encoder_layers=4,
            n_decoder_layers=4,
            d_llm=1024,
            n_llm_layers=4,
            n_vocabulary=32_000,
        ),
        Shape(
            name="toy",
            d_encoder=64,
            n_encoder_layers=1,
            n_decoder_layers=1,
            d_llm=512,
            n_llm_layers=1,
            n_vocabulary=2_566,
            n_mels=80,
            n_encoder_positions=150,
            n_decoder_positions=32,
        ),
    )
}
"""large-v3 and turbo with an 8B Llama, for GPUs; small for a CPU, with the ratio of widths and the equal depths of
large-v3 with 8B; toy to see whether everything runs."""


def describe_shape(ear: Ear) -> Shape:
    """Returns the sizes of an ear's models."""
    whisper, llm = ear.whisper.config, ear.llm.config.get_text_config(decoder=True)
    return Shape(
        name=f"{Path(ear.settings.base.encoder).name} with {Path(ear.settings.base.llm).name}",
        d_encoder=whisper.d_model,
        n_encoder_layers=whisper.encoder_layers,
        n_decoder_layers=whisper.decoder_layers,
        d_llm=llm.hidden_size,
        n_llm_layers=llm.num_hidden_layers,
        n_vocabulary=llm.vocab_size,
        n_mels=whisper.num_mel_bins,
        n_encoder_positions=whisper.max_source_positions,
        n_decoder_positions=whisper.max_target_positions,
    )


@dataclass(frozen=True)
class Backbones:
    """A frozen Whisper and a frozen LLM, with a tokenizer: of random weights, or those of an ear."""

    whisper: Whisper
    llm: PreTrainedModel
    tokenizer: Any

    @classmethod
    def build(cls, shape: Shape, device: torch.device) -> "Backbones":
        """Builds them in the dtype that a run on this device uses."""
        tokenizer = load_tokenizer("pocket/llm", None)
        tokenizer.chat_template = _CHAT_TEMPLATE
        torch.manual_seed(0)
        with silence_transformers(), device:
            whisper = WhisperForConditionalGeneration._from_config(
                shape.whisper_config, dtype=get_frozen_dtype(device)
            )
            llm = LlamaForCausalLM._from_config(shape.llama_config, dtype=get_frozen_dtype(device))
        frozen = [model.requires_grad_(False).eval() for model in (whisper, llm)]
        return cls(Whisper(frozen[0], tokenizer), frozen[1], tokenizer)

    def build_ear(self, settings: ConnectorSettings) -> Ear:
        """Returns an untrained ear; all ears share the backbones.

        Where the form has a vocabulary head, the shared vocabulary is as large as the smaller of the two.
        """
        torch.manual_seed(1)
        whisper_embeddings = self.whisper.model.model.decoder.embed_tokens.weight
        llm_embeddings = get_input_embeddings(self.llm).weight
        n_shared = min(len(whisper_embeddings), len(llm_embeddings))
        shared = SharedVocabulary(
            decoder_embeddings=whisper_embeddings[:n_shared],
            other_decoder_embeddings=whisper_embeddings[n_shared:],
            other_pieces=torch.full((len(whisper_embeddings) - n_shared, 1), -1),
            piece_embeddings=llm_embeddings[:0],
            llm_embeddings=llm_embeddings[:n_shared],
            prompt_embeddings=whisper_embeddings[:2],
            end_embedding=whisper_embeddings[2],
            language_embeddings=whisper_embeddings[:0],
        )
        connector = build_connector(
            self.whisper.config,
            settings,
            self.llm.config.hidden_size,
            shared if settings.uses_shared_vocabulary else None,
        )
        connector.init_from_decoder(self.whisper.model.model.decoder)
        ear_settings = EarSettings(
            base=BaseSettings(encoder="random/whisper", llm="random/llm"),
            prompt=PromptSettings(),
            connector=settings,
        )
        return Ear(
            self.whisper, self.llm, self.tokenizer, connector.float().to(self.llm.device).eval(), ear_settings
        )
