"""Measures of a trained ear of the ablations, on the questions of the pocket suite.

This module trains nothing and knows no arms. Measures that do not depend on the connector (answers to the texts and to
the ASR model's transcripts) are computed with the first ear and reused for all others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ossicle.atomic_io import write_text
from ossicle.audio.augment import add_noise
from ossicle.audio.waveform import SAMPLE_RATE, AudioSource, load_audio
from ossicle.data.dataset import open_speech
from ossicle.ear import Ear
from ossicle.evaluation import EvaluationSettings, Item, Report, Suite, evaluate, load_suite, read_report
from ossicle.training.run_log import read_metrics

SNR_DB = 10.0
N_SLOTS_MEASURED = 16
N_CLIPS_BY_SLOT = 600
"""Clips of training speech for alignment by slot: questions are too short, eight tokens at most."""
MAX_ANSWER = 48
"""Most tokens of an answer; right ones have 17 at most, and those of an untrained ear may never end."""
_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions, and the measures that all ears on the same frozen models share."""

    items: tuple[Item, ...]
    reused_report: Path
    """File of the report whose text ceiling and cascade are reused."""

    def evaluate(self, ear: Ear) -> Report:
        """Evaluates an ear on the questions."""
        reused = read_report(self.reused_report) if self.reused_report.exists() else None
        report = evaluate(
            ear,
            Suite(name="pocket", items=self.items),
            EvaluationSettings(batch_size=_BATCH_SIZE, generate_kwargs={"max_new_tokens": MAX_ANSWER}),
            command="",
            reuse_from=reused,
        )
        if reused is None:
            write_text(self.reused_report, json.dumps(report.to_json()))
        return report


def load_questions(out: Path) -> QuestionSet:
    """Returns the questions as they were recorded."""
    return QuestionSet(items=load_suite("pocket"), reused_report=out / "reading.json")


def load_noisy_questions(out: Path) -> QuestionSet:
    """Returns the questions in white noise, the same for every ear."""
    noisy = tuple(replace(item, audio=add_white_noise(item)) for item in load_suite("pocket"))
    return QuestionSet(items=noisy, reused_report=out / "reading-noisy.json")


def add_white_noise(item: Item) -> tuple[np.ndarray, int]:
    """Returns a question's samples in white noise that is drawn from its id, and their rate."""
    samples = load_audio(item.audio)
    rng = np.random.default_rng(list(item.id.encode()))
    return add_noise(samples, rng.standard_normal(len(samples), dtype=np.float32), SNR_DB), SAMPLE_RATE


def summarize_report(report: Report) -> dict[str, float]:
    """Returns the ratios of right answers, and how close the LLM's answers to sound are to those to text.

    Returns: ratios of right answers; KL(text || sound) of the answer's first token in nats, and how often the likeliest
        one is the same; L2 and cosine of the final hidden states before it; the ratio of answers that are equal
    """
    overall, fidelity = report.overall, report.fidelity["ear"]
    assert fidelity.same_answers is not None, "a report has the answers"
    return {
        "ear": overall.ear.value,
        **{f"ear, {group}": table.ear.value for group, table in report.groups.items()},
        "cascade": overall.cascade.value,
        "text": overall.text_ceiling.value,
        "KL": fidelity.kl_nats.mean,
        "top-1": fidelity.first_same.mean,
        "L2": fidelity.l2.mean,
        "cosine": fidelity.cosine.mean,
        "same answers": fidelity.same_answers.mean,
    }


# Token accuracy


@torch.inference_mode()
def measure_token_naming(ear: Ear, items: Sequence[Item]) -> dict[str, float]:
    """Compares the LLM's nearest embeddings of the audio tokens with the tokens of the transcripts, by edit distance.

    Commas do not count: they are not clips. Forms aligned to the right do not tell where the words start; there the
    last audio tokens count, as many as the transcript has tokens.

    Returns: ratio of right tokens, errors per token, and, for forms aligned to the left, ratio of right lengths
    """
    target_ids, commas = tokenize(ear, [item.text for item in items]), _comma_ids(ear)
    audio_tokens = ear.hear([item.audio for item in items])
    rows = ear.nearest_tokens(torch.cat(audio_tokens)).split([len(slots) for slots in audio_tokens])
    nearest_ids = [[i for i in row.tolist() if i not in commas] for row in rows]
    is_right_aligned = ear.connector.alignment == "right"
    if is_right_aligned:
        nearest_ids = [row[-len(ids) :] for row, ids in zip(nearest_ids, target_ids, strict=True)]
    alignment = jiwer.process_words(
        [" ".join(map(str, ids)) for ids in target_ids], [" ".join(map(str, row)) for row in nearest_ids]
    )
    n_tokens = sum(map(len, target_ids))
    return {
        "tokens named": alignment.hits / n_tokens,
        "errors per token": (alignment.substitutions + alignment.deletions + alignment.insertions) / n_tokens,
    } | ({} if is_right_aligned else {"length right": _compute_length_accuracy(nearest_ids, target_ids)})


def _compute_length_accuracy(
    nearest_ids: Sequence[Sequence[int]], target_ids: Sequence[Sequence[int]]
) -> float:
    return float(np.mean([len(row) == len(ids) for row, ids in zip(nearest_ids, target_ids, strict=True)]))


def _comma_ids(ear: Ear) -> set[int]:
    return set(ear.tokenizer.encode(",", add_special_tokens=False))


def tokenize(ear: Ear, texts: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of transcripts within the chat template."""
    return [list(ear.template.split_prompt(text).text) for text in texts]


# Slots


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Sounds and their transcripts."""

    audio: list[AudioSource]
    texts: list[str]


def load_training_clips(n: int = N_CLIPS_BY_SLOT) -> Clips:
    """Returns the first clips of the pocket speech, which is in random order."""
    speech = open_speech(("pocket/speech",), n)
    utterances = [speech[row] for row in range(len(speech))]
    return Clips(audio=[clip.audio for clip in utterances], texts=[clip.text for clip in utterances])


@torch.inference_mode()
def measure_slot_errors(ear: Ear, clips: Clips) -> dict[str, list[float | None]]:
    """Returns the mean L2 of tokens' embeddings to their audio tokens, by position from the start and from the end.

    Audio tokens are computed as at inference, without the transcript. A token belongs to the slot that it is aligned to
    in training; tokens without a slot are left out. None where fewer than 20 clips have such a token.
    """
    errors_by_side: dict[str, list[list[float]]] = {
        side: [[] for _ in range(N_SLOTS_MEASURED)] for side in ("from the start", "from the end")
    }
    ids = tokenize(ear, clips.texts)
    for slots, target_ids in zip(ear.hear(clips.audio), ids, strict=True):
        for token, error in _compute_token_errors(ear, slots, torch.tensor(target_ids)).items():
            for side, position in (("from the start", token), ("from the end", len(target_ids) - 1 - token)):
                if position < N_SLOTS_MEASURED:
                    errors_by_side[side][position].append(error)
    return {
        side: [float(np.mean(errors)) if len(errors) >= 20 else None for errors in row]
        for side, row in errors_by_side.items()
    }


def _compute_token_errors(
    ear: Ear, slots: Float[Tensor, "Q D"], target_ids: Int[Tensor, " T"]
) -> dict[int, float]:
    """Returns the distance of each token that has a slot."""
    n_before = len(slots) - len(target_ids) if ear.connector.alignment == "right" else 0
    tokens = [token for token in range(len(target_ids)) if 0 <= token + n_before < len(slots)]
    targets = ear.embed(target_ids[tokens])
    errors = (slots[[token + n_before for token in tokens]] - targets).float().norm(dim=1)
    return dict(zip(tokens, errors.tolist(), strict=True))


# Cost


def read_training_cost(folder: Path, batch_size: int) -> dict[str, float]:
    """Returns the FLOPs (without the encoder, whose features are cached) and seconds of a run, by its metrics."""
    flops = seconds = 0.0
    before = 0
    for row in read_metrics(folder):
        n_clips = (row["step"] - before) * batch_size
        flops += row["tflops"] / row["clips_per_s"] * n_clips
        seconds += n_clips / row["clips_per_s"]
        before = row["step"]
    return {"training TFLOP": flops, "seconds trained": seconds}
