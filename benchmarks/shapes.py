"""Ears of random weights in the sizes of real ones, and small ones that keep their proportions; clips to go with them.

Nothing is read but the tokenizer that comes with ossicle, so that anybody can run what is measured. Speed does not
depend on what weights and clips hold, only on their sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import FRAMES_PER_POSITION, count_frames
from ossicle.backbones.model_files import silence_transformers
from ossicle.backbones.pretrained import Whisper, get_frozen_dtype, load_tokenizer
from ossicle.config import (
    AugmentSettings,
    BaseSettings,
    ConnectorSettings,
    DataSettings,
    ObjectiveSettings,
    PromptSettings,
    Recipe,
    TrainSettings,
)
from ossicle.connectors import build_connector
from ossicle.connectors.vocabulary_head import SharedVocabulary
from ossicle.data.dataset import SpeechDataset
from ossicle.data.sampler import BatchSampler
from ossicle.data.source import Source, Utterance
from ossicle.ear import Ear, EarSettings
from ossicle.plan import CostModel, MicrobatchMemory, build_cost_model, build_shapes
from ossicle.plan.shapes import ModelShapes
from ossicle.training.batch import Clip, ClipDataset, Microbatch, build_microbatch
from ossicle.training.cache.tensor_cache import CacheEntry, TensorCache, plan_cache_write, write_index
from ossicle.training.distributed import Ranks
from ossicle.training.optimizer import build_optimizer
from ossicle.training.run import Run, build_sampler
from ossicle.training.teacher import Teacher, compute_transcript_key

TOKENS_PER_SECOND = 2.8
"""Of read English: 14 in a clip of 5 s."""
_SPREAD = 0.3
"""Clips last up to so much less or more than the mean."""
_POOL = 16
"""Batches whose clips a run sorts by length."""
_FRAME = (
    "{{ bos_token }}{% for message in messages %}{{ '<|user|>\n\n' if message.role == 'user' else '<|assistant|>' }}"
    "{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|> the answer is{% endif %}"
)
"""A chat template as long as Llama 3's."""
N_PREFIX, N_SUFFIX = 5, 5
"""Tokens that it has before and after what is said."""


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
    n_positions: int = 1500
    """Of the encoder's full window: 30 s."""
    n_slots: int = 448
    """That the decoder has positions for."""

    @property
    def window_s(self) -> float:
        """Seconds of the encoder's full window."""
        return self.n_positions * FRAMES_PER_POSITION * HOP_LENGTH / SAMPLE_RATE

    @property
    def whisper(self) -> WhisperConfig:
        """Heads of 64 and a middle four times as wide, as in every Whisper."""
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
            max_source_positions=self.n_positions,
            max_target_positions=self.n_slots,
            pad_token_id=2_560,
            bos_token_id=2_560,
            eos_token_id=2_560,
            decoder_start_token_id=2_561,
        )

    @property
    def llama(self) -> LlamaConfig:
        """Heads of 128, four of queries to one of keys, and a middle 3.5 times as wide, as in Llama 3 8B.

        Input and output embeddings are one table: training needs no logits, and the memory is needed for other things.
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
            n_positions=150,
            n_slots=32,
        ),
    )
}
"""large-v3 and turbo with an 8B Llama, for GPUs; small for a CPU, with the ratio of widths and the equal depths of
large-v3 with 8B; toy to try whether everything runs."""


@dataclass(frozen=True)
class Bases:
    """A frozen Whisper and a frozen Llama of random weights, with a tokenizer."""

    whisper: Whisper
    llm: LlamaForCausalLM
    tokenizer: Any

    @classmethod
    def of(cls, shape: Shape, device: torch.device) -> "Bases":
        """In the type that a run on this device has them in."""
        tokenizer = load_tokenizer("pocket/llm", None)
        tokenizer.chat_template = _FRAME
        torch.manual_seed(0)
        with silence_transformers(), device:
            whisper = WhisperForConditionalGeneration._from_config(
                shape.whisper, dtype=get_frozen_dtype(device)
            )
            llm = LlamaForCausalLM._from_config(shape.llama, dtype=get_frozen_dtype(device))
        frozen = [model.requires_grad_(False).eval() for model in (whisper, llm)]
        return cls(Whisper(frozen[0], tokenizer), frozen[1], tokenizer)

    def ear(self, settings: ConnectorSettings) -> Ear:
        """An ear that has learned nothing; bases are shared by all that are made of them.

        Where it is to know words, those are as many as the smaller of the two vocabularies has.
        """
        torch.manual_seed(1)
        written, read = (
            self.whisper.model.model.decoder.embed_tokens.weight,
            get_input_embeddings(self.llm).weight,
        )
        n_words = min(len(written), len(read))
        shared = SharedVocabulary(
            decoder_embeddings=written[:n_words],
            other_decoder_embeddings=written[n_words:],
            llm_embeddings=read[:n_words],
            prompt_embeddings=written[:2],
            end_embedding=written[2],
            language_embeddings=written[:0],
        )
        connector = build_connector(
            self.whisper.config,
            settings,
            self.llm.config.hidden_size,
            shared if settings.uses_shared_vocabulary else None,
        )
        connector.init_from_decoder(self.whisper.model.model.decoder)
        about = EarSettings(
            base=BaseSettings(encoder="random/whisper", llm="random/llm"),
            prompt=PromptSettings(),
            connector=settings,
        )
        return Ear(
            self.whisper, self.llm, self.tokenizer, connector.float().to(self.llm.device).eval(), about
        )


def drawn_batches(
    shape: Shape, mean_s: float, batch_size: int, n_batches: int, seed: int = 0
) -> list[list[Clip]]:
    """Batches from the shortest clips to the longest of a pool, as a run makes them of clips of like length.

    Args:
        mean_s: seconds that clips of the pool last on average; they are as dense as speech, more or less
    """
    rng = np.random.default_rng(seed)
    n = _POOL * batch_size
    seconds = np.minimum(mean_s * rng.uniform(1 - _SPREAD, 1 + _SPREAD, n), shape.window_s)
    n_tokens = np.maximum(1, seconds * TOKENS_PER_SECOND * rng.uniform(1 - _SPREAD / 2, 1 + _SPREAD / 2, n))
    sampler = BatchSampler(seconds, batch_size, seed)
    batches = sorted((sampler[step] for step in range(_POOL)), key=lambda batch: seconds[batch[0].row])
    places = [(2 * number + 1) * _POOL // (2 * n_batches) for number in range(n_batches)]
    torch.manual_seed(seed)
    return [
        [_clip(shape, float(seconds[draw.row]), int(n_tokens[draw.row])) for draw in batches[place]]
        for place in places
    ]


def _clip(shape: Shape, length_s: float, n_tokens: int) -> Clip:
    n_frames = min(count_frames(round(length_s * SAMPLE_RATE)), shape.n_positions * FRAMES_PER_POSITION)
    ids = torch.randint(min(shape.n_vocabulary, 2_560), (min(n_tokens, shape.n_slots),))
    return Clip(ids=ids, mel=torch.randn(shape.n_mels, n_frames), states=None)


def portion_of(clips: Sequence[Clip]) -> Microbatch:
    """Clips as a step is given them."""
    return build_microbatch(clips)


def planned(shape: Shape, recipe: Recipe, *, plainly: bool = False) -> CostModel:
    """What `ossicle plan` says of a recipe between bases of these sizes; nothing is computed.

    Args:
        plainly: with an LLM that has to read its prefix with every clip, and all positions in all layers
    """
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration._from_config(shape.whisper, dtype=torch.bfloat16)
        llm = LlamaForCausalLM._from_config(shape.llama, dtype=torch.bfloat16)
        connector = build_connector(shape.whisper, recipe.connector, shape.d_llm).train()
    frozen = [model.requires_grad_(False).eval() for model in (whisper, llm)]
    return build_cost_model(
        recipe,
        ModelShapes(
            whisper=frozen[0],
            llm=frozen[1],
            connector=connector,
            n_prefix=N_PREFIX,
            n_suffix=N_SUFFIX,
            is_template_known=True,
            can_share_prefix=not plainly,
            can_gather_last_layer=not plainly,
        ),
    )


def published_recipe(shape: Shape) -> Recipe:
    """As recipes/diva-llama-3-8b.toml has it: planned plainly, what `literal` computes."""
    return Recipe(
        out="nowhere",
        base=BaseSettings(encoder="random/whisper", llm="random/llm", encoder_window="full"),
        connector=ConnectorSettings(form="diva", n_queries=shape.n_slots),
    )


# What follows is all that has to know how a run of ossicle is put together.

OURS = ConnectorSettings(form="anchored", n_queries=256)


def our_recipe(shape: Shape, folder: Path, batch_size: int) -> Recipe:
    """As recipes/llama-3.1-8b.toml has it, without clips in a row, and past the steps in which no LLM is asked."""
    return Recipe(
        out=str(folder / "run"),
        base=BaseSettings(encoder="random/whisper", llm="random/llm"),
        connector=replace(OURS, n_queries=min(OURS.n_queries, shape.n_slots)),
        objective=ObjectiveSettings(hidden_positions="suffix", token_ce_weight=1.0),
        data=DataSettings(n_workers=0, teacher_cache=str(folder / "teacher")),
        train=TrainSettings(batch_size=batch_size, peak_lr=5e-5, save_every=100),
    )


class _NoRows(Source):
    """Rows that are nowhere: clips are drawn beside the run."""

    texts, durations_s, content_id = pa.chunked_array([["none"]]), np.ones(1, np.float32), "random"

    def row_name(self, row: int) -> str:
        return f"clip {row}"

    def __getitem__(self, row: int) -> Utterance:
        return Utterance(name=self.row_name(row), audio=np.zeros(SAMPLE_RATE, np.float32), text="none")


def new_run(bases: Bases, recipe: Recipe, cache: TensorCache | None = None) -> Run:
    """A run as `ossicle.training.run.build_run` makes it of files, with nothing read from any."""
    ear = bases.ear(recipe.connector)
    shapes = build_shapes(ear)
    costs = build_cost_model(recipe, shapes)
    speech = SpeechDataset([(_NoRows(), None)])
    return Run(
        recipe=recipe,
        ear=ear,
        connector=ear.connector,
        dataset=ClipDataset(ear, speech, recipe.data, AugmentSettings(), recipe.train.seed),
        teacher=Teacher(ear, recipe.objective, cache),
        optimizer=build_optimizer(ear.connector, recipe.train),
        sampler=build_sampler(speech, recipe),
        ranks=Ranks(),
        cost_model=costs,
        memory_model=MicrobatchMemory.from_shapes(shapes, costs),
        peak_flops=None,
        backbone_fingerprints={},
    )


def filled_cache(run: Run, clips: Sequence[Clip]) -> TensorCache:
    """The teacher's states of all transcripts, written to the recipe's folder and opened again."""
    assert run.recipe.data.teacher_cache is not None
    folder, need = Path(run.recipe.data.teacher_cache), run.teacher.target_positions
    ids: list[Int[Tensor, " T"]] = [clip.ids for clip in clips]
    n_suffix = len(run.ear.template.frame.suffix)
    filling = plan_cache_write(
        folder,
        need.fingerprint,
        [compute_transcript_key(row) for row in ids],
        [need.n_states(len(row), n_suffix, 0) for row in ids],
        width=run.ear.llm.config.hidden_size,
        dtype=run.ear.llm.dtype,
    )

    def read(places: np.ndarray) -> list[CacheEntry]:
        values = Teacher(run.ear, run.recipe.objective).compute_states(
            [ids[place] for place in places.tolist()]
        )
        return [CacheEntry(value.states.cpu(), value.token_ids) for value in values]

    filling.write_shards(read)
    return write_index(folder, need.fingerprint)


def full_window(shape: Shape, clips: Sequence[Clip]) -> Float[Tensor, "B M F"]:
    """Spectrograms padded to the encoder's whole window, as published."""
    mels: list[Tensor] = [clip.mel for clip in clips if clip.mel is not None]
    n_frames = shape.n_positions * FRAMES_PER_POSITION
    return torch.stack([nn.functional.pad(mel, (0, n_frames - mel.shape[1])) for mel in mels])
