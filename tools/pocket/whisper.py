"""The pocket Whisper, trained from random weights on synthesized speech.

There are three losses: the decoder's next-token loss, CTC over characters in the middle of the encoder, and CTC over
words at its top. The two CTC heads are discarded after training: with them, a small encoder finds words within minutes,
where attention alone needs hours.
"""

import functools
import itertools
import json
import random
import string
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.modeling_whisper import WhisperAttention

from ossicle.audio.spec_augment import augment_mel
from ossicle.backbones.encoder import EncoderWindow, compute_clip_mel, encode, expand_attention_mask, pad_mels
from tools.pocket import world
from tools.pocket.llm import compute_lr_factor, print_progress
from tools.pocket.tokens import N_BPE_TOKENS

WINDOW_S, N_MELS = 6, 80
WINDOW_FRAMES = WINDOW_S * 100
N_PROCESSES = 2
"""Training processes with one thread each. Each step's clips are split among them."""
WARMUP_STEPS = 300
LOSS_WEIGHTS = {"attention": 1.0, "characters": 0.3, "words": 0.5}
MAX_EASY_SAMPLES, N_EASY_STEPS = 26_000, 300
N_ENCODER_ONLY_STEPS = 600
"""Steps of a new model that train only the encoder: before that, the decoder could only learn to guess."""
N_HEADS_ONLY_STEPS = 100
"""Steps of a later stage in which CTC trains only the new heads."""
FRAMES_MULTIPLE, TOKENS_MULTIPLE = 40, 4
"""Batches are padded to multiples of these: a CPU compiles new kernels for each new shape."""
CHARACTERS = " " + string.ascii_lowercase


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """One stage of training."""

    n_steps: int
    batch_size: int
    """Clips of one process in a step."""
    peak_lr: float
    is_first: bool = False
    """Whether it starts from random weights; otherwise it starts from the weights in the folder."""
    stops_at: int | None = None
    """The step after which it stops early, before the end of the learning rate schedule."""


class SpeechBatches(Dataset):
    """Batches of augmented clips of similar length. Item n is always the same batch."""

    def __init__(
        self, folders: Sequence[Path], tokenizer: WhisperTokenizer, stage: TrainingStage, rank: int
    ) -> None:
        self.folders = folders
        self.clips = [
            json.loads(line) | {"folder": number}
            for number, folder in enumerate(folders)
            for line in (folder / "clips.jsonl").read_text().splitlines()
        ]
        self.stage = stage
        self.token_ids = [tokenizer(clip["text"], add_special_tokens=False).input_ids for clip in self.clips]
        self.word_ids = {word: number for number, word in enumerate(world.vocabulary(), 1)}  # 0: CTC's blank
        self.start, self.end = tokenizer.prefix_tokens, tokenizer.eos_token_id
        self.batch_plan = self._plan_batches(stage.n_steps * N_PROCESSES)[rank::N_PROCESSES]
        self.rank = rank

    @functools.cached_property
    def samples(self) -> list[np.ndarray]:
        """Each folder's samples, mapped in the process that reads them: sending them there would copy gigabytes."""
        return [np.memmap(folder / "samples.i16", dtype=np.int16, mode="r") for folder in self.folders]

    def _plan_batches(self, n_batches: int) -> list[list[int]]:
        """Returns the clips of each batch: shuffled in each pass, and grouped by length within 64 batches.

        The first steps use only short clips, in which words are found sooner. The batches of one step are shuffled
        together, so that its processes have batches of similar length.
        """
        rng, size = random.Random("whisper"), self.stage.batch_size
        plan: list[list[int]] = []
        while len(plan) < n_batches:
            order = rng.sample(range(len(self.clips)), len(self.clips))
            if self.stage.is_first and not plan:
                easy = [clip for clip in order if self.clips[clip]["n"] < MAX_EASY_SAMPLES]
                order = easy[: N_EASY_STEPS * N_PROCESSES * size]
            stretch = 64 * size
            for first in range(0, len(order), stretch):
                group = sorted(order[first : first + stretch], key=lambda clip: self.clips[clip]["n"])
                full = len(group) // size // N_PROCESSES * N_PROCESSES * size
                batches = [group[n : n + size] for n in range(0, full, size)]
                steps = [batches[n : n + N_PROCESSES] for n in range(0, len(batches), N_PROCESSES)]
                plan += itertools.chain.from_iterable(rng.sample(steps, len(steps)))
        return plan[:n_batches]

    def __len__(self) -> int:
        return len(self.batch_plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"batch {index} {self.rank}")
        clips = [self.clips[number] for number in self.batch_plan[index]]
        sounds = [self._load_padded(clip, rng) for clip in clips]
        window = EncoderWindow(WINDOW_FRAMES, "full" if rng.random() < 0.02 else "sound")
        clean = [compute_clip_mel(sound, N_MELS, window) for sound in sounds]
        background = [clean[-1], *clean[:-1]]  # background speech for each clip
        mel, n_frames = pad_mels(
            [
                augment_mel(clip, rng.getrandbits(40), WINDOW_FRAMES, lambda voice=voice: voice)
                for clip, voice in zip(clean, background, strict=True)
            ]
        )
        targets = [[*self.start, *self.token_ids[number], self.end] for number in self.batch_plan[index]]
        characters = [[CHARACTERS.index(character) + 1 for character in clip["text"]] for clip in clips]
        words = [[self.word_ids[word] for word in clip["text"].split()] for clip in clips]
        return {
            "mel": functional.pad(mel, (0, -mel.shape[2] % FRAMES_MULTIPLE)),
            "n_frames": n_frames,
            "ids": _pad_rows(targets, -100, TOKENS_MULTIPLE),
            "characters": _pad_rows(characters, 0),
            "n_characters": torch.tensor([len(row) for row in characters]),
            "words": _pad_rows(words, 0),
            "n_words": torch.tensor([len(row) for row in words]),
        }

    def _load_padded(self, clip: dict, rng: random.Random) -> np.ndarray:
        """Returns the clip with random silence around it, so that speech does not always start at the same time."""
        recorded = self.samples[clip["folder"]][clip["start"] : clip["start"] + clip["n"]]
        samples = recorded.astype(np.float32) / 32768
        room = WINDOW_S * 16_000 - 800 - len(samples)
        return np.pad(samples, [rng.randint(0, min(3_200, room // 2)) for _ in range(2)])


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _pad_rows(rows: list[list[int]], value: int, step: int = 1) -> torch.Tensor:
    length = _round_up(max(map(len, rows)), step)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def build_whisper(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """Returns the pocket Whisper with random weights. It is English-only: its prompt is start, no timestamps."""
    start, no_timestamps = tokenizer.prefix_tokens
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=N_MELS,
        d_model=128,
        encoder_layers=6,
        encoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_layers=6,
        decoder_attention_heads=4,
        decoder_ffn_dim=512,
        max_source_positions=WINDOW_FRAMES // 2,
        max_target_positions=64,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    _scale_weights(model)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        no_timestamps_token_id=no_timestamps,
        forced_decoder_ids=None,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        max_length=48,
        is_multilingual=False,
        return_timestamps=False,
    )
    return model


def _scale_weights(model: WhisperForConditionalGeneration) -> None:
    """Draws new weights at a scale that keeps activations near one.

    transformers draws them all with a standard deviation of 0.02. At that scale the audio is lost next to the position
    embeddings, and a small Whisper needs its first thousand steps to find it.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.proj_out:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
    for attention in model.model.encoder.modules():
        if isinstance(attention, WhisperAttention):
            # Queries equal to keys attend to near and similar positions (mimetic initialization, arXiv 2305.09828).
            nn.init.xavier_uniform_(attention.q_proj.weight, gain=1.5)
            attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
    nn.init.normal_(model.model.decoder.embed_tokens.weight, std=model.config.d_model**-0.5)


class WhisperWithCtc(nn.Module):
    """The Whisper with the two CTC heads that only training needs."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        model.set_attn_implementation("eager")  # faster than the fused kernel for clips of two seconds
        self.model, width = model, model.config.d_model
        self.characters = nn.Linear(width, len(CHARACTERS) + 1)
        self.words = nn.Linear(width, len(world.vocabulary()) + 1)
        self.middle_states: list[torch.Tensor] = []
        layers = model.model.encoder.layers
        layers[len(layers) // 2 - 1].register_forward_hook(
            lambda _layer, _inputs, states: self.middle_states.append(states)
        )

    def compute_losses(
        self, batch: dict[str, torch.Tensor], step: int, is_first: bool
    ) -> dict[str, torch.Tensor]:
        """Returns the unweighted loss terms of one batch."""
        features = encode(self.model.model.encoder, batch["mel"], batch["n_frames"])
        half_way, top, n_positions = self.middle_states.pop(), features.states, features.mask.sum(1)
        if not is_first and step < N_HEADS_ONLY_STEPS:
            half_way, top = half_way.detach(), top.detach()
        losses = {
            "characters": _compute_ctc_loss(
                self.characters(half_way), n_positions, batch["characters"], batch["n_characters"]
            ),
            "words": _compute_ctc_loss(self.words(top), n_positions, batch["words"], batch["n_words"]),
        }
        if not is_first or step >= N_ENCODER_ONLY_STEPS:
            losses["attention"] = self._compute_attention_loss(
                features.states, features.mask, batch["ids"], step
            )
        return losses

    def _compute_attention_loss(
        self, states: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Returns the cross-entropy of the next token, with some of the previous tokens replaced by random ones.

        A decoder that cannot trust its previous tokens attends more to the audio.
        """
        inputs, targets = ids[:, :-1].clamp(min=0), ids[:, 1:].clone()
        targets[:, 0] = -100  # the prompt is given, not predicted
        generator = torch.Generator().manual_seed(step)
        lost = torch.rand(inputs.shape, generator=generator) < 0.15
        lost[:, :2] = False
        inputs = torch.where(lost, torch.randint(0, N_BPE_TOKENS, inputs.shape, generator=generator), inputs)
        decoder, hides = self.model.model.decoder, expand_attention_mask(mask)
        hidden = decoder.embed_tokens(inputs) + decoder.embed_positions.weight[: inputs.shape[1]]
        causal = torch.full((inputs.shape[1], inputs.shape[1]), -torch.inf).triu(1)[None, None]
        for layer in decoder.layers:
            hidden = layer(hidden, causal, states, hides, use_cache=False)
        logits = self.model.proj_out(decoder.layer_norm(hidden))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.05)


def _compute_ctc_loss(
    logits: torch.Tensor, n_positions: torch.Tensor, targets: torch.Tensor, n_targets: torch.Tensor
) -> torch.Tensor:
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)  # (B, S, C) -> (S, B, C)
    return functional.ctc_loss(log_probabilities, targets, n_positions, n_targets, zero_infinity=True)


def _average_gradients(weights: list[nn.Parameter]) -> None:
    """Averages gradients over the processes, in one message."""
    given = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights]
    flat = torch.cat([gradient.flatten() for gradient in given])
    distributed.all_reduce(flat)
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight) / N_PROCESSES


def _run_process(
    rank: int,
    rendezvous: str,
    tokenizer: WhisperTokenizer,
    clip_dirs: Sequence[Path],
    folder: Path,
    stage: TrainingStage,
) -> None:
    """Runs one of the training processes."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=N_PROCESSES
    )
    torch.manual_seed(0)
    model = build_whisper(tokenizer)
    if not stage.is_first:
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    trained_model = WhisperWithCtc(model).train()
    weights = list(trained_model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=stage.peak_lr, betas=(0.9, 0.98), weight_decay=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: compute_lr_factor(step, stage.n_steps, WARMUP_STEPS)
    )
    loader = DataLoader(
        SpeechBatches(clip_dirs, tokenizer, stage, rank), batch_size=None, num_workers=1, prefetch_factor=8
    )
    started = time.monotonic()
    for step, batch in enumerate(itertools.islice(loader, stage.stops_at), 1):
        # On CPUs with bfloat16 instructions, a step takes half the time.
        with torch.autocast("cpu", torch.bfloat16):
            losses = trained_model.compute_losses(batch, step - 1, stage.is_first)
        torch.stack([LOSS_WEIGHTS[name] * term for name, term in losses.items()]).sum().backward()
        _average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if rank == 0 and step % 50 == 0:
            terms = " ".join(f"{name} {term.item():.3f}" for name, term in losses.items())
            print_progress(f"step {step} {terms} {time.monotonic() - started:.0f} s")
        if rank == 0 and step % 500 == 0:
            save_whisper(model, tokenizer, folder.with_name(f"{folder.name}-{step}"))
    if rank == 0:
        save_whisper(model, tokenizer, folder)
    distributed.destroy_process_group()


def train_whisper(
    tokenizer: WhisperTokenizer, clip_dirs: Sequence[Path], folder: Path, stage: TrainingStage
) -> None:
    """Trains one stage in `N_PROCESSES` processes. Writes model, feature extractor and tokenizer to `folder`.

    Args:
        clip_dirs: folders of clip sets; the clips of a folder that is listed twice are used twice as often
    """
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (f"{scratch}/meeting", tokenizer, clip_dirs, folder, stage)
        multiprocessing.spawn(_run_process, arguments, nprocs=N_PROCESSES)


def save_whisper(model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, folder: Path) -> None:
    """Writes model, feature extractor and tokenizer in Hugging Face format, with weights rounded to bfloat16."""
    small = build_whisper(tokenizer).to(torch.bfloat16)
    small.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()})
    small.tie_weights()
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=N_MELS, chunk_length=WINDOW_S).save_pretrained(folder)
