"""What a trained ear of the ablations is measured by, all of it on the questions of the suite that comes with ossicle.

It trains nothing and knows no arms. What does not depend on the connector (answers to the texts and to the recogniser's
transcripts) is computed with the first ear and kept for all others.
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
"""Clips of the training speech by whose slots alignment is measured: questions have eight tokens at most."""
MAX_ANSWER = 48
"""Tokens of an answer; right ones have 17 at most, and those of an ear that has learned nothing may never end."""
_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """The questions, and what all ears on the same frozen models share."""

    items: tuple[Item, ...]
    reading_file: Path
    """File of the report whose text ceiling and cascade are taken over."""

    def evaluate(self, ear: Ear) -> Report:
        """The questions as an ear answers them."""
        reading = read_report(self.reading_file) if self.reading_file.exists() else None
        report = evaluate(
            ear,
            Suite(name="pocket", items=self.items),
            EvaluationSettings(batch_size=_BATCH_SIZE, generate_kwargs={"max_new_tokens": MAX_ANSWER}),
            command="",
            reuse_from=reading,
        )
        if reading is None:
            write_text(self.reading_file, json.dumps(report.to_json()))
        return report


def load_questions(out: Path) -> QuestionSet:
    """As they were spoken."""
    return QuestionSet(items=load_suite("pocket"), reading_file=out / "reading.json")


def load_noisy_questions(out: Path) -> QuestionSet:
    """With white noise, the same for every ear."""
    noisy = tuple(replace(item, audio=add_white_noise(item)) for item in load_suite("pocket"))
    return QuestionSet(items=noisy, reading_file=out / "reading-noisy.json")


def add_white_noise(item: Item) -> tuple[np.ndarray, int]:
    """A question's samples in white noise that is drawn from its id, and their rate."""
    samples = load_audio(item.audio)
    rng = np.random.default_rng(list(item.id.encode()))
    return add_noise(samples, rng.standard_normal(len(samples), dtype=np.float32), SNR_DB), SAMPLE_RATE


def summarize_report(report: Report) -> dict[str, float]:
    """Shares of right answers, and how near the LLM's reaction to sound comes to that to text.

    Returns: besides the shares, KL(read || heard) of the answer's first token in nats, share of the same likeliest one,
    L2 and cosine of the final hidden states before it, and the share of answers that are the text's word for word
    """
    overall, near = report.overall, report.fidelity["ear"]
    assert near.same_answers is not None, "a report has the answers"
    return {
        "ear": overall.ear.value,
        **{f"ear, {group}": table.ear.value for group, table in report.groups.items()},
        "cascade": overall.cascade.value,
        "text": overall.text_ceiling.value,
        "KL": near.kl_nats.mean,
        "top-1": near.first_same.mean,
        "L2": near.l2.mean,
        "cosine": near.cosine.mean,
        "same answers": near.same_answers.mean,
    }


# Naming


@torch.inference_mode()
def measure_token_naming(ear: Ear, items: Sequence[Item]) -> dict[str, float]:
    """How many tokens of the transcripts their audio tokens name, by the nearest of all the LLM's embeddings.

    Aligned by edit distance. Commas do not count: nobody speaks them. Nothing in forms aligned to the right says where
    the words begin: there the last names are read, as many as the transcript has tokens.

    Returns: share of tokens named, errors per token, and, in forms that say it, share of clips of the right length
    """
    wanted, commas = tokenize(ear, [item.text for item in items]), _comma_ids(ear)
    heard = ear.hear([item.audio for item in items])
    rows = ear.nearest_tokens(torch.cat(heard)).split([len(slots) for slots in heard])
    names = [[i for i in row.tolist() if i not in commas] for row in rows]
    is_right = ear.connector.alignment == "right"
    if is_right:
        names = [row[-len(ids) :] for row, ids in zip(names, wanted, strict=True)]
    found = jiwer.process_words(
        [" ".join(map(str, ids)) for ids in wanted], [" ".join(map(str, row)) for row in names]
    )
    n_tokens = sum(map(len, wanted))
    return {
        "tokens named": found.hits / n_tokens,
        "errors per token": (found.substitutions + found.deletions + found.insertions) / n_tokens,
    } | ({} if is_right else {"length right": _compute_length_accuracy(names, wanted)})


def _compute_length_accuracy(names: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    return float(np.mean([len(row) == len(ids) for row, ids in zip(names, wanted, strict=True)]))


def _comma_ids(ear: Ear) -> set[int]:
    return set(ear.tokenizer.encode(",", add_special_tokens=False))


def tokenize(ear: Ear, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of transcripts, as the chat template frames them."""
    return [list(ear.template.split_prompt(text).text) for text in texts]


# Slots


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Sounds and what is said in them."""

    audio: list[AudioSource]
    texts: list[str]


def load_training_clips(n: int = N_CLIPS_BY_SLOT) -> Clips:
    """The first clips of the pocket speech, which lie in no order."""
    speech = open_speech(("pocket/speech",), n)
    clips = [speech[row] for row in range(len(speech))]
    return Clips(audio=[clip.audio for clip in clips], texts=[clip.text for clip in clips])


@torch.inference_mode()
def measure_slot_errors(ear: Ear, spoken: Clips) -> dict[str, list[float | None]]:
    """Mean L2 between a token's embedding and its audio token, by the token's place from the start and from the end.

    Heard as at inference, with no transcript; a token belongs to the slot that it is aligned to in training. Tokens
    without a slot are left out. Null where fewer than 20 clips have such a token.
    """
    places: dict[str, list[list[float]]] = {
        side: [[] for _ in range(N_SLOTS_MEASURED)] for side in ("from the start", "from the end")
    }
    ids = tokenize(ear, spoken.texts)
    for slots, wanted in zip(ear.hear(spoken.audio), ids, strict=True):
        for token, error in _compute_token_errors(ear, slots, torch.tensor(wanted)).items():
            for side, place in (("from the start", token), ("from the end", len(wanted) - 1 - token)):
                if place < N_SLOTS_MEASURED:
                    places[side][place].append(error)
    return {
        side: [float(np.mean(errors)) if len(errors) >= 20 else None for errors in row]
        for side, row in places.items()
    }


def _compute_token_errors(
    ear: Ear, slots: Float[Tensor, "Q D"], wanted: Int[Tensor, " T"]
) -> dict[int, float]:
    """The distance of each token that has a slot."""
    n_before = len(slots) - len(wanted) if ear.connector.alignment == "right" else 0
    tokens = [token for token in range(len(wanted)) if 0 <= token + n_before < len(slots)]
    targets = ear.embed(wanted[tokens])
    errors = (slots[[token + n_before for token in tokens]] - targets).float().norm(dim=1)
    return dict(zip(tokens, errors.tolist(), strict=True))


# Cost


def read_training_cost(folder: Path, batch_size: int) -> dict[str, float]:
    """What a run's steps cost, by its own metrics: operations (features were kept, so without the encoder) and time."""
    flops = seconds = 0.0
    before = 0
    for row in read_metrics(folder):
        n_clips = (row["step"] - before) * batch_size
        flops += row["tflops"] / row["clips_per_s"] * n_clips
        seconds += n_clips / row["clips_per_s"]
        before = row["step"]
    return {"training TFLOP": flops, "seconds trained": seconds}
