"""The pocket Whisper, trained from random weights on the heard speech: attention and, beside it, CTC over letters."""

import json
import random
import string
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperAttention

from earshot.audio import HOP_LENGTH
from earshot.encoder import encode, mel_batch
from earshot.pocket.make.augment import augment
from earshot.pocket.make.llm import lr_factor, report
from earshot.pocket.make.tokens import N_BPE_TOKENS

WINDOW_S, N_MELS = 6, 80
WINDOW_FRAMES = WINDOW_S * 100
BATCH_SIZE, WARMUP_STEPS, CTC_WEIGHT = 32, 200, 0.5
EASY_SAMPLES, N_EASY_STEPS = 26_000, 400
FLAT_START_STEPS = 500
SAMPLES_PER_POSITION = 2 * HOP_LENGTH
LETTERS = "_ " + string.ascii_lowercase  # CTC's blank first


class HeardSpeech(Dataset):
    """Batches of augmented clips of like length; item n is always the same batch."""

    def __init__(self, folder: Path, tokenizer: WhisperTokenizer, n_steps: int, *, is_new: bool) -> None:
        self.samples = np.memmap(folder / "samples.i16", dtype=np.int16, mode="r")
        self.clips = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
        self.ids = [tokenizer(clip["text"], add_special_tokens=False).input_ids for clip in self.clips]
        self.start, self.end = tokenizer.prefix_tokens, tokenizer.eos_token_id
        self.plan = self._plan(n_steps, is_new)

    def _plan(self, n_steps: int, is_new: bool) -> list[list[int]]:
        """Clips shuffled each pass, grouped by length within stretches of 32 batches, batches shuffled again.

        A new model's first steps take short clips only, in which a word is quickly found.
        """
        rng = random.Random("whisper")
        plan: list[list[int]] = []
        while len(plan) < n_steps:
            order = rng.sample(range(len(self.clips)), len(self.clips))
            if is_new and not plan:
                order = [clip for clip in order if self.clips[clip]["n"] < EASY_SAMPLES][
                    : N_EASY_STEPS * BATCH_SIZE
                ]
            stretch = 32 * BATCH_SIZE
            for first in range(0, len(order), stretch):
                group = sorted(order[first : first + stretch], key=lambda clip: self.clips[clip]["n"])
                batches = [
                    group[n : n + BATCH_SIZE] for n in range(0, len(group) - BATCH_SIZE + 1, BATCH_SIZE)
                ]
                plan += rng.sample(batches, len(batches))
        return plan[:n_steps]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"batch {index}")
        clips = [self.clips[number] for number in self.plan[index]]
        tempo = [rng.uniform(0.94, 1.06) for _ in clips]
        drawn = [self._sound(clip, rate, rng) for clip, rate in zip(clips, tempo, strict=True)]
        sounds, starts, ends = zip(*drawn, strict=True)
        longest = max(map(len, sounds))
        padded = torch.stack([functional.pad(sound, (0, longest - len(sound))) for sound in sounds])
        heard = augment(padded, index)
        full_window = rng.random() < 0.06
        mel, n_frames = mel_batch(
            [heard[row, : len(sound)].numpy() for row, sound in enumerate(sounds)],
            N_MELS,
            WINDOW_FRAMES,
            full_window,
        )
        for row in range(len(sounds)):
            _mask_patches(mel[row], int(n_frames[row]), rng)
        targets = [[*self.start, *self.ids[number], self.end] for number in self.plan[index]]
        letters = [[LETTERS.index(letter) for letter in clip["text"]] for clip in clips]
        return {
            "mel": mel,
            "n_frames": n_frames,
            "ids": _padded(targets, -100),
            "letters": _padded(letters, 0),
            "n_letters": torch.tensor([len(row) for row in letters]),
            "flat": _flat_start(letters, starts, ends, mel.shape[2] // 2),
        }

    def _sound(self, clip: dict, tempo: float, rng: random.Random) -> tuple[torch.Tensor, int, int]:
        """The clip at another tempo (pitch moves along) in a little silence, and the samples where speech lies."""
        samples = torch.from_numpy(
            self.samples[clip["start"] : clip["start"] + clip["n"]].astype(np.float32) / 32768
        )
        room = WINDOW_S * 16_000 - 800
        n_samples = min(int(len(samples) / tempo), room)
        sound = functional.interpolate(
            samples[None, None], size=n_samples, mode="linear", align_corners=True
        )[0, 0]
        before, after = (rng.randint(0, min(1_600, (room - n_samples) // 2)) for _ in range(2))
        return functional.pad(sound, (before, after)), before, before + n_samples


def _flat_start(letters: list[list[int]], starts: Sequence[int], ends: Sequence[int], n: int) -> torch.Tensor:
    """For each encoder position the letter that would be spoken there if all letters took the same time."""
    flat = torch.full((len(letters), n), -100)
    for row, (spelled, start, end) in enumerate(zip(letters, starts, ends, strict=True)):
        first, last = start // SAMPLES_PER_POSITION, min(end // SAMPLES_PER_POSITION, n)
        place = torch.arange(last - first) * len(spelled) // (last - first)
        flat[row, first:last] = torch.tensor(spelled)[place]
    return flat


def _mask_patches(mel: torch.Tensor, n_frames: int, rng: random.Random) -> None:
    """SpecAugment, in place: two stretches of time and two bands of frequency set to the mean."""
    mean = mel[:, :n_frames].mean()
    for _ in range(2):
        first, width = rng.randrange(n_frames), rng.randint(0, 6)
        mel[:, first : min(first + width, n_frames)] = mean
        first, width = rng.randrange(N_MELS), rng.randint(0, 8)
        mel[first : first + width, :n_frames] = mean


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def new_whisper(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """The pocket Whisper before training: English only, so its prompt is start, no timestamps."""
    start, no_timestamps = tokenizer.prefix_tokens
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=N_MELS,
        d_model=128,
        encoder_layers=4,
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
    """New weights at a scale that keeps activations near one.

    transformers draws them all with a deviation of 0.02, at which sound is lost beside the position embeddings and
    a small Whisper spends its first thousand steps on finding it.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.proj_out:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
    for attention in model.model.encoder.modules():
        if isinstance(attention, WhisperAttention):
            # Queries that start equal to keys look at what is near and alike (mimetic initialisation, arXiv 2305.09828).
            nn.init.xavier_uniform_(attention.q_proj.weight, gain=1.5)
            attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
    nn.init.normal_(model.model.decoder.embed_tokens.weight, std=model.config.d_model**-0.5)


def _losses(
    model: WhisperForConditionalGeneration,
    ctc_head: nn.Linear,
    batch: dict[str, torch.Tensor],
    step: int,
    is_new: bool,
) -> dict[str, torch.Tensor]:
    """Weighted terms: the next word from the decoder, letters from the encoder by CTC, and at first the flat start."""
    features = encode(model.model.encoder, batch["mel"], batch["n_frames"])
    inputs, targets = batch["ids"][:, :-1].clamp(min=0), batch["ids"][:, 1:].clone()
    targets[:, 0] = -100  # the prompt is given, not guessed
    # A decoder that cannot trust every word before it listens more and guesses less.
    generator = torch.Generator().manual_seed(step)
    lost = torch.rand(inputs.shape, generator=generator) < 0.1
    lost[:, :2] = False
    inputs = torch.where(lost, torch.randint(0, N_BPE_TOKENS, inputs.shape, generator=generator), inputs)
    heard = BaseModelOutput(last_hidden_state=features.states)
    logits = model(encoder_outputs=heard, decoder_input_ids=inputs).logits
    letters = ctc_head(features.states)
    losses = {
        "attention": functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.05),
        "ctc": CTC_WEIGHT
        * functional.ctc_loss(
            letters.log_softmax(-1).transpose(0, 1),  # (B, S, C) -> (S, B, C)
            batch["letters"],
            features.mask.sum(1),
            batch["n_letters"],
            zero_infinity=True,
        ),
    }
    if is_new and step < FLAT_START_STEPS:
        # Synthetic speech is even enough that letters at even distances are a first guess, as HMMs were once begun.
        flat = functional.cross_entropy(letters.flatten(0, 1), batch["flat"].flatten())
        losses["flat"] = (1 - step / FLAT_START_STEPS) * flat
    return losses


def train_whisper(
    tokenizer: WhisperTokenizer,
    heard: Path,
    folder: Path,
    n_steps: int,
    *,
    peak_lr: float,
    start: Path | None = None,
) -> None:
    """Trains for `n_steps` and writes model, feature extractor and tokenizer to `folder`.

    Args:
        start: a trained Whisper to go on from, without the early help; random weights if none
    """
    torch.manual_seed(0)
    model = (
        WhisperForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        if start
        else new_whisper(tokenizer)
    )
    model.train()
    ctc_head = nn.Linear(model.config.d_model, len(LETTERS))
    weights = [*model.parameters(), *ctc_head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, n_steps, WARMUP_STEPS)
    )
    speech = HeardSpeech(heard, tokenizer, n_steps, is_new=start is None)
    loader = DataLoader(speech, batch_size=None, num_workers=1, prefetch_factor=8)
    started = time.monotonic()
    for step, batch in enumerate(loader):
        losses = _losses(model, ctc_head, batch, step, is_new=start is None)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            terms = " ".join(f"{name} {term.item():.3f}" for name, term in losses.items())
            report(f"step {step} {terms} {time.monotonic() - started:.0f} s")
        if step % 500 == 499 or step == n_steps - 1:
            save_whisper(model, tokenizer, folder)


def save_whisper(model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, folder: Path) -> None:
    """Model, feature extractor and tokenizer in Hugging Face format, weights rounded to bfloat16 to be small."""
    small = new_whisper(tokenizer).to(torch.bfloat16)
    small.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()})
    small.tie_weights()
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=N_MELS, chunk_length=WINDOW_S).save_pretrained(folder)
