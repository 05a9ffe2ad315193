"""Training steps between random backbones on random clips, ours and the published one, built in memory."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, WhisperForConditionalGeneration

from benchmarks.shapes import CONNECTOR, N_PREFIX, N_SUFFIX, TOKENS_PER_SECOND, Backbones, Shape
from benchmarks.training.published_step import PublishedBatch, PublishedConnector, PublishedStep
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.encoder import FRAMES_PER_POSITION, count_frames
from ossicle.chat.template import ChatTemplate
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
from ossicle.connectors.query import QueryConnector
from ossicle.data.dataset import SpeechDataset
from ossicle.data.sampler import BatchSampler
from ossicle.data.source import Source, Utterance
from ossicle.ear import Ear
from ossicle.plan import CostModel, MicrobatchMemory, build_cost_model, build_shapes
from ossicle.plan.shapes import ModelShapes
from ossicle.training.batch import Clip
from ossicle.training.cache.cache_writer import plan_cache_write, write_index
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry
from ossicle.training.dataset import ClipDataset
from ossicle.training.distributed import Ranks
from ossicle.training.optimizer import build_optimizer
from ossicle.training.run import Run
from ossicle.training.setup import build_sampler
from ossicle.training.teacher import Teacher, compute_transcript_key

_LENGTH_SPREAD = 0.3
"""Clips last up to this ratio less or more than the mean."""
_N_POOL_BATCHES = 16
"""Batches whose clips a run sorts together by length."""


def draw_batches(
    shape: Shape, mean_s: float, batch_size: int, n_batches: int, seed: int = 0
) -> list[list[Clip]]:
    """Draws a pool of clips, and returns batches of similar lengths from its shortest clips to its longest.

    Args:
        mean_s: mean length of the pool's clips in seconds; they have about as many tokens a second as speech
    """
    rng = np.random.default_rng(seed)
    n = _N_POOL_BATCHES * batch_size
    seconds = np.minimum(mean_s * rng.uniform(1 - _LENGTH_SPREAD, 1 + _LENGTH_SPREAD, n), shape.window_s)
    n_tokens = np.maximum(
        1, seconds * TOKENS_PER_SECOND * rng.uniform(1 - _LENGTH_SPREAD / 2, 1 + _LENGTH_SPREAD / 2, n)
    )
    sampler = BatchSampler(seconds, batch_size, seed)
    batches = sorted(
        (sampler[step] for step in range(_N_POOL_BATCHES)), key=lambda batch: seconds[batch[0].row]
    )
    chosen = [(2 * number + 1) * _N_POOL_BATCHES // (2 * n_batches) for number in range(n_batches)]
    torch.manual_seed(seed)
    return [
        [_draw_clip(shape, float(seconds[draw.row]), int(n_tokens[draw.row])) for draw in batches[index]]
        for index in chosen
    ]


def _draw_clip(shape: Shape, length_s: float, n_tokens: int) -> Clip:
    n_frames = min(
        count_frames(round(length_s * SAMPLE_RATE)), shape.n_encoder_positions * FRAMES_PER_POSITION
    )
    ids = torch.randint(min(shape.n_vocabulary, 2_560), (min(n_tokens, shape.n_decoder_positions),))
    return Clip(ids=ids, mel=torch.randn(shape.n_mels, n_frames), states=None)


def plan_costs(shape: Shape, recipe: Recipe, *, is_naive: bool = False) -> CostModel:
    """Returns what `ossicle plan` computes for a recipe with backbones of these sizes; no weights are allocated.

    Args:
        is_naive: whether the LLM computes the prefix with every clip, and all positions in all layers
    """
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration._from_config(shape.whisper_config, dtype=torch.bfloat16)
        llm = LlamaForCausalLM._from_config(shape.llama_config, dtype=torch.bfloat16)
        connector = build_connector(shape.whisper_config, recipe.connector, shape.d_llm).train()
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
            can_share_prefix=not is_naive,
            can_gather_last_layer=not is_naive,
        ),
    )


def build_published_recipe(shape: Shape) -> Recipe:
    """Returns the settings of recipes/diva-llama-3-8b.toml; `PublishedStep` computes them, naively."""
    return Recipe(
        out="nowhere",
        base=BaseSettings(encoder="random/whisper", llm="random/llm", encoder_window="full"),
        connector=ConnectorSettings(form="diva", n_queries=shape.n_decoder_positions),
    )


def build_recipe(
    shape: Shape, folder: Path, batch_size: int, connector: ConnectorSettings = CONNECTOR
) -> Recipe:
    """Returns the settings of recipes/llama-3.1-8b.toml, without concatenated clips and the alignment-only warm-up."""
    token_ce_weight = 1.0 if connector.form == "anchored" else 0.0
    return Recipe(
        out=str(folder / "run"),
        base=BaseSettings(encoder="random/whisper", llm="random/llm"),
        connector=replace(connector, n_queries=min(connector.n_queries, shape.n_decoder_positions)),
        objective=ObjectiveSettings(hidden_positions="suffix", token_ce_weight=token_ce_weight),
        data=DataSettings(n_workers=0, teacher_cache=str(folder / "teacher")),
        train=TrainSettings(batch_size=batch_size, peak_lr=5e-5, save_every=100),
    )


class _EmptySource(Source):
    """A source without clips: the benchmarks draw their own."""

    texts, durations_s, content_id = pa.chunked_array([["none"]]), np.ones(1, np.float32), "random"

    def row_name(self, row: int) -> str:
        return f"clip {row}"

    def __getitem__(self, row: int) -> Utterance:
        return Utterance(name=self.row_name(row), audio=np.zeros(SAMPLE_RATE, np.float32), text="none")


def build_run(backbones: Backbones, recipe: Recipe, cache: TensorCache | None = None) -> Run:
    """Builds a run as `ossicle.training.setup.build_run` does, but reads no files."""
    return build_run_of_ear(backbones.build_ear(recipe.connector), recipe, cache)


def build_run_of_ear(ear: Ear, recipe: Recipe, cache: TensorCache | None = None) -> Run:
    """Builds a run of an untrained ear, without files."""
    shapes = build_shapes(ear)
    costs = build_cost_model(recipe, shapes)
    speech = SpeechDataset([(_EmptySource(), None)])
    return Run(
        recipe=recipe,
        ear=ear,
        connector=ear.connector,
        start=None,
        dataset=ClipDataset(ear, speech, recipe.data, AugmentSettings(), recipe.train.seed),
        teacher=Teacher(ear, recipe.objective, cache),
        optimizer=build_optimizer(ear.connector, recipe.train),
        sampler=build_sampler(speech, recipe.train),
        ranks=Ranks(),
        cost_model=costs,
        memory_model=MicrobatchMemory.from_shapes(shapes, costs),
        peak_flops=None,
        backbone_fingerprints={},
    )


def fill_teacher_cache(run: Run, clips: Sequence[Clip]) -> TensorCache:
    """Writes the teacher's states of all transcripts to the recipe's folder, and opens the cache."""
    assert run.recipe.data.teacher_cache is not None
    folder, need = Path(run.recipe.data.teacher_cache), run.teacher.target_positions
    ids: list[Int[Tensor, " T"]] = [clip.ids for clip in clips]
    n_suffix = len(run.ear.template.frame.suffix)
    plan = plan_cache_write(
        folder,
        need.fingerprint,
        [compute_transcript_key(row) for row in ids],
        [need.n_states(len(row), n_suffix, 0) for row in ids],
        width=run.ear.llm.config.hidden_size,
        dtype=run.ear.llm.dtype,
    )

    def compute(rows: np.ndarray) -> list[CacheEntry]:
        values = Teacher(run.ear, run.recipe.objective).compute_states([ids[row] for row in rows.tolist()])
        return [CacheEntry(value.states.cpu(), value.token_ids) for value in values]

    plan.write_shards(compute)
    return write_index(folder, need.fingerprint)


def build_published_step(backbones: Backbones, shape: Shape) -> PublishedStep:
    """Builds the published step with the initial weights of our connector of the published form."""
    assert isinstance(backbones.llm, LlamaForCausalLM)
    torch.manual_seed(1)
    settings = ConnectorSettings(form="diva", n_queries=shape.n_decoder_positions)
    ours = build_connector(backbones.whisper.config, settings, shape.d_llm)
    whisper, device = backbones.whisper.model.model, backbones.llm.device
    ours.init_from_decoder(whisper.decoder)
    assert isinstance(ours, QueryConnector)
    assert isinstance(ours.projection, nn.Linear)
    decoder = copy.deepcopy(whisper.decoder).requires_grad_(True)
    connector = PublishedConnector(ours.queries.detach(), decoder, ours.projection).float().to(device)
    frame = ChatTemplate(backbones.tokenizer, PromptSettings()).frame
    return PublishedStep(whisper.encoder, connector, backbones.llm, *frame)


def build_published_batch(shape: Shape, clips: Sequence[Clip]) -> PublishedBatch:
    """Batches clips for the published step, with spectrograms as long as the encoder's window."""
    return PublishedBatch(
        mel=pad_to_window(shape, clips),
        ids=pad_sequence([clip.ids for clip in clips], batch_first=True),
        n_text=[len(clip.ids) for clip in clips],
    )


def pad_to_window(shape: Shape, clips: Sequence[Clip]) -> Float[Tensor, "B M F"]:
    """Returns the clips' spectrograms padded to the encoder's full window, as published."""
    mels: list[Tensor] = [clip.mel for clip in clips if clip.mel is not None]
    n_frames = shape.n_encoder_positions * FRAMES_PER_POSITION
    return torch.stack([nn.functional.pad(mel, (0, n_frames - mel.shape[1])) for mel in mels])
