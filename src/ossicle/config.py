"""The settings of a run, as frozen values. This file does not know how the settings are used."""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from ossicle.errors import ConfigError
from ossicle.settings_io import check, from_table
from ossicle.text_encoding import read_text_file

RENAMED_SETTINGS: dict[str | tuple[str, str], str] = {
    "augment.noise_share": "augment.noise_ratio",
    "augment.silence_share": "augment.silence_ratio",
    "data.join_share": "data.concat_ratio",
    "data.max_bad_share": "data.max_invalid_ratio",
    "data.n_views": "data.n_augmented_views",
    "objective.lead_share": "objective.align_only_ratio",
    "objective.n_answer": "objective.n_response_tokens",
    "objective.name_weight": "objective.token_ce_weight",
    "objective.spot_weight": "objective.asr_weight",
    "train.final_lr_share": "train.final_lr_ratio",
    "train.frozen": "train.frozen_placement",
    "train.part_gb": "train.microbatch_gb",
    "train.warmup_share": "train.warmup_ratio",
    ("connector.form", "left"): "query",
    ("connector.form", "right"): "diva",
}
"""Old names that a recipe may still have, with their new names: keys, and values by (key, value)."""


def _check_positive(name: str, value: float) -> None:
    check(0 < value < math.inf, name, value, "a positive number")


def _check_ratio(name: str, value: float) -> None:
    check(0 <= value <= 1, name, value, "a ratio between 0 and 1")


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The part of the prompt that does not come from the user; the same in training and at inference."""

    system: str | None = None
    """System prompt of conversations that have none of their own. Without it, the chat template's default is used."""

    date: str = "2024-07-26"
    """The current date (YYYY-MM-DD) for chat templates that print one. It is fixed, so that stored teacher states stay
    valid."""

    template_variables: tuple[str, ...] | None = None
    """Variables of the chat template, such as "enable_thinking=false" for LLMs that think before they answer."""

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid date and for variables that are none."""
        check(_is_date(self.date), "prompt.date", self.date, "a date such as '2024-07-26' (YYYY-MM-DD)")
        parse_template_variables(self.template_variables or ())


RESERVED_VARIABLES = frozenset(
    "add_generation_prompt chat_template continue_final_message conversation date_string documents max_length messages"
    " padding pinned_date return_assistant_tokens_mask return_dict return_tensors strftime_now tokenize"
    " tokenizer_kwargs tools truncation".split()
)
"""Names of the chat template's variables that are set otherwise, and of the renderer's own arguments."""


def parse_template_variables(texts: Sequence[str]) -> dict[str, Any]:
    """Returns variables of a chat template from texts such as "enable_thinking=false"; values are JSON or plain text.

    Raises:
        ConfigError: no name, or the name of something else
    """
    variables: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        is_variable = bool(equals) and name.isidentifier() and name not in RESERVED_VARIABLES
        check(
            is_variable,
            "prompt.template_variables",
            text,
            "a variable of the template, as enable_thinking=false",
        )
        try:
            variables[name] = json.loads(value)
        except (ValueError, RecursionError):
            variables[name] = value
    return variables


WindowKind = Literal["sound", "full", "sound+silence"]


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """The two frozen models that the connector joins."""

    encoder: str = "pocket/whisper"
    """A Whisper: hub id, local folder (also one in CTranslate2's form, as faster-whisper has), or the embedded
    "pocket/whisper"."""

    encoder_revision: str | None = None
    """Branch, tag or commit of the encoder on the hub."""

    llm: str = "pocket/llm"
    """A causal LM with a chat template: hub id, local folder, GGUF file (dequantized; needs ossicle[gguf]), or the
    embedded "pocket/llm"."""

    llm_revision: str | None = None
    """Branch, tag or commit of the LLM on the hub."""

    encoder_window: WindowKind = "sound"
    """Input length of the encoder. full: always the whole window (30 s in published Whispers), padded with silence;
    sound: the clip's own duration, for a Whisper that was trained so: a published one repeats itself until its connector
    is trained for it; sound+silence: the clip's own duration in front of silence that was encoded once, which published
    Whispers hardly tell from the whole window."""

    silence_margin_s: float = 0.0
    """Silence that is encoded with each clip, in front of the stored one (encoder_window sound+silence): more of it is
    slower and nearer to the whole window."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a model without a name."""
        check(bool(self.encoder), "base.encoder", self.encoder, "a hub id or a local folder")
        check(bool(self.llm), "base.llm", self.llm, "a hub id, a local folder or a GGUF file")
        is_duration = math.isfinite(self.silence_margin_s) and self.silence_margin_s >= 0
        check(is_duration, "base.silence_margin_s", self.silence_margin_s, "seconds, 0 or more")


_MAX_SLOTS_PER_SECOND = 1_000
"""More than any speech has words or sounds."""


@dataclass(frozen=True, kw_only=True)
class ConnectorSettings:
    """How the connector turns encoder features into audio tokens."""

    form: Literal["anchored", "autoregressive", "diva", "query", "stack"] = "autoregressive"
    """autoregressive (default): Whisper's decoder writes one audio token after the other, each the expected LLM
    embedding over the words that both vocabularies share plus a learned residual; diva: the published form, a fixed
    number of learned queries, the transcript aligned to their right end; query: the published connector with as many
    tokens as the transcript, aligned to the left, and a learned end; anchored: like query, all tokens in one pass, each
    query anchored to the stretch of sound where its token is spoken; stack: stacked encoder frames through an MLP."""

    init: Literal["whisper", "random"] = "whisper"
    """Start the decoder stack from the encoder's own decoder or from random weights."""

    n_layers: int | None = None
    """Layers of the decoder stack, taken from the encoder's decoder at even distances; all of them if left out (not in
    form stack)."""

    n_queries: int = 448
    """Number of learned queries: the most audio tokens of a clip; in form diva, the number that each clip has."""

    slots_per_second: float = 25.0
    """Most audio tokens per second of sound (forms whose audio tokens match the transcript's): above the rate of any
    speech in any language, so that the learned end decides."""

    dropout: float = 0.0
    """Dropout rate of the connector's layers in training (not in form stack)."""

    n_stacked: int = 16
    """Encoder positions that are stacked into one audio token (form stack)."""

    n_merged: int | None = None
    """Decoder states that are joined into one audio token (form diva); left out, each state is one. A published variant
    makes 112 audio tokens of 448 states."""

    def __post_init__(self) -> None:
        """Raise ConfigError for impossible sizes."""
        check(self.n_queries >= 1, "connector.n_queries", self.n_queries, "at least 1")
        check(self.n_layers is None or self.n_layers >= 1, "connector.n_layers", self.n_layers, "at least 1")
        check(
            0 < self.slots_per_second <= _MAX_SLOTS_PER_SECOND,
            "connector.slots_per_second",
            self.slots_per_second,
            f"a number above 0 and at most {_MAX_SLOTS_PER_SECOND:,}",
        )
        check(0 <= self.dropout < 1, "connector.dropout", self.dropout, "a rate from 0 to below 1")
        check(self.n_stacked >= 1, "connector.n_stacked", self.n_stacked, "at least 1")
        divides = self.n_merged is None or (self.n_merged >= 1 and self.n_queries % self.n_merged == 0)
        expected = "a divisor of connector.n_queries, in form diva only"
        check(divides, "connector.n_merged", self.n_merged, expected)
        check(self.n_merged is None or self.form == "diva", "connector.n_merged", self.n_merged, expected)

    @property
    def is_one_to_one(self) -> bool:
        """Whether audio tokens match the transcript's tokens one to one."""
        return self.form in ("anchored", "autoregressive", "query")

    @property
    def uses_shared_vocabulary(self) -> bool:
        """Whether audio tokens are made of the words that Whisper and the LLM share."""
        return self.form == "autoregressive" and self.init == "whisper"

    @property
    def learns_end(self) -> bool:
        """Whether a head predicts which slot is past the last token."""
        return self.form in ("autoregressive", "query")


def check_silence_margin(base: BaseSettings) -> None:
    """Raises ConfigError for a margin of silence where no silence is stored behind it."""
    check(
        base.encoder_window == "sound+silence" or base.silence_margin_s == 0,
        "base.silence_margin_s",
        base.silence_margin_s,
        f'0, as base.encoder_window is "{base.encoder_window}"',
    )


def check_window(base: BaseSettings, connector: ConnectorSettings) -> None:
    """Raises ConfigError for a connector that reads the encoder's positions one by one, as silence is stored in rows."""
    check(
        base.encoder_window != "sound+silence" or connector.form not in ("anchored", "stack"),
        "base.encoder_window",
        base.encoder_window,
        f"sound or full: form {connector.form} reads position after position, and silence is stored in rows",
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The terms of the training loss and their weights."""

    hidden_weight: float = 1.0
    """Weight of the L2 distance between the LLM's last hidden states when it hears the clip and when it reads the
    transcript."""

    hidden_positions: Literal["last", "suffix", "all"] = "last"
    """Positions at which hidden states are compared. last: the last position (as published); suffix: all positions
    after the audio tokens; all: the suffix and the audio tokens themselves (only forms with one audio token for each
    token of the transcript)."""

    align_weight: float = 1.0
    """Weight of the L2 distance between the audio tokens and the embeddings of the transcript's tokens."""

    token_ce_weight: float = 0.0
    """Weight of a cross-entropy that classifies each audio token among the batch's transcript tokens by its distance to
    their embeddings. Not part of the published method; a connector without pretrained weights aligns several times
    sooner with it."""

    end_weight: float = 1.0
    """Weight of the cross-entropy of the learned end (forms query and autoregressive)."""

    asr_weight: float = 1.0
    """Weight of the negative log-likelihood of the transcript: by CTC-like posteriors of single positions (form
    anchored), or by the next-token distribution over the vocabulary that Whisper and the LLM share (form
    autoregressive)."""

    anchor_weight: float = 0.0
    """Weight of the KL divergence of the words that the ear hears from those that it heard before training, in the same
    clip without noise (form autoregressive with init whisper). It keeps what Whisper knows of other speakers and longer
    speech, and is what fine-tuning on a few hours of speech needs."""

    kl_weight: float = 0.0
    """Weight of the forward KL divergence between the next-token distributions of teacher and student, the usual
    distillation loss."""

    kl_temperature: float = 1.0
    """Temperature of the KL divergence."""

    n_response_tokens: int = 1
    """Number of tokens of the LLM's own greedy response at whose positions hidden states are compared. 1: only the
    position that predicts the response's first token, as published."""

    align_only_ratio: float = 0.0
    """Ratio of all steps, at the start, that train without the hidden-state and KL terms."""

    def __post_init__(self) -> None:
        """Raise ConfigError for invalid weights."""
        for name, weight in self.term_weights.items():
            check(0 <= weight < math.inf, f"objective.{name}_weight", weight, "zero or more")
        check(
            self.n_response_tokens >= 1, "objective.n_response_tokens", self.n_response_tokens, "at least 1"
        )
        _check_positive("objective.kl_temperature", self.kl_temperature)
        _check_ratio("objective.align_only_ratio", self.align_only_ratio)
        check(
            self.hidden_weight + self.align_weight + self.kl_weight > 0,
            "objective.align_weight",
            self.align_weight,
            "a positive number, as objective.hidden_weight and objective.kl_weight are zero too",
        )
        check(
            self.align_weight > 0 or self.align_only_ratio == 0,
            "objective.align_only_ratio",
            self.align_only_ratio,
            "0, as objective.align_weight is zero too and those steps would have no loss",
        )

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term of the loss, by its name."""
        return {
            "align": self.align_weight,
            "token_ce": self.token_ce_weight,
            "end": self.end_weight,
            "asr": self.asr_weight,
            "anchor": self.anchor_weight,
            "hidden": self.hidden_weight,
            "kl": self.kl_weight,
        }


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The transcribed speech to distill from."""

    source: tuple[str, ...] = ("pocket/speech",)
    """One source or several: a parquet, JSONL or tar file (or a glob pattern), a packed folder, a Hugging Face dataset
    by hub id or local folder, or the embedded "pocket/speech". Options follow a "?", such as
    "user/speech?config=en&split=train&text=sentence&weight=2"."""

    n_clips: int | None = None
    """Number of clips to use, from the start of the source. Without it, all clips."""

    max_invalid_ratio: float = 0.01
    """Highest ratio of rows that may be skipped as invalid; above it the run stops. Skipped rows are listed in
    skipped.jsonl."""

    concat_ratio: float = 0.0
    """Ratio of examples that are several clips concatenated, up to the encoder's window. Long questions need it. Not
    together with a feature cache."""

    n_augmented_views: int = 1
    """Number of views of each clip, used in turn from pass to pass. The first view is the clip unchanged; the others
    have another vocal tract length, another tempo, a room, a microphone and noise."""

    feature_cache: str | None = None
    """Folder to keep encoder features in (bfloat16), for small datasets and many passes. What `augment` draws is then
    drawn once for each view, not in every pass. Clips in tables and tar files are identified by row and transcript:
    delete the folder if their audio was replaced."""

    teacher_cache: str | None = None
    """Folder of stored teacher states. States that are missing there are computed in the training step."""

    n_workers: int = 2
    """Worker processes of each rank that read and decode audio and compute its spectrograms. 0: the training process
    does it."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a source without a name and for invalid counts, ratios and folders."""
        expected = "a .parquet, .jsonl or .tar file, a dataset, or pocket/speech"
        check(bool(self.source) and all(self.source), "data.source", self.source, expected)
        check(self.n_clips is None or self.n_clips >= 1, "data.n_clips", self.n_clips, "at least 1")
        check(self.n_augmented_views >= 1, "data.n_augmented_views", self.n_augmented_views, "at least 1")
        check(self.n_workers >= 0, "data.n_workers", self.n_workers, "zero or more")
        _check_ratio("data.max_invalid_ratio", self.max_invalid_ratio)
        _check_ratio("data.concat_ratio", self.concat_ratio)
        for name in ("feature_cache", "teacher_cache"):
            check(getattr(self, name) != "", f"data.{name}", "", "a folder, or to be left out")
        check(
            self.teacher_cache is None or self.teacher_cache != self.feature_cache,
            "data.teacher_cache",
            self.teacher_cache,
            "another folder than data.feature_cache",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes to the training clips, drawn again in each pass. The defaults change nothing."""

    noise_ratio: float = 0.0
    """Ratio of clips that get noise."""

    noise: str | None = None
    """Folder of audio files to take the noise from. Without it, noise of a random color (spectral slope) is
    generated."""

    babble_ratio: float = 0.0
    """Ratio of clips that get a babble of three to eight other clips of the training speech."""

    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    """Lowest and highest ratio of speech to noise or babble, in decibels."""

    speed: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest speed factor. The pitch changes with the speed."""

    silence_ratio: float = 0.0
    """Ratio of clips that get up to 1.5 s of silence before and up to 1.5 s after; noise covers it too."""

    spec_augment: bool = False
    """Mask random time spans and frequency bands (SpecAugment)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for invalid ratios and ranges."""
        for name in ("noise_ratio", "babble_ratio", "silence_ratio"):
            _check_ratio(f"augment.{name}", getattr(self, name))
        for name in ("noise_snr_db", "speed"):
            low, high = getattr(self, name)
            is_range = -math.inf < low <= high < math.inf
            check(is_range, f"augment.{name}", (low, high), "two finite numbers, the smaller one first")
        check(
            self.speed[0] >= 0.5 and self.speed[1] <= 2, "augment.speed", self.speed, "factors from 0.5 to 2"
        )
        check(self.noise != "", "augment.noise", "", "a folder, or to be left out")
        check(
            self.noise is None or self.noise_ratio > 0,
            "augment.noise",
            self.noise,
            "to be left out, as augment.noise_ratio is zero",
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimization of the connector."""

    n_steps: int = 4_300
    """Number of optimizer steps; with train.minutes, their highest number."""

    minutes: float | None = None
    """Minutes of training after which the run ends, for a run that takes as many steps as a computer manages in them.
    Learning rate and objective.align_only_ratio then follow the time in place of the steps. Such a run can be stopped
    and resumed, but not repeated bit for bit. Encoding for data.feature_cache comes before and is not counted."""

    batch_size: int = 512
    """Highest number of clips in an optimizer step, over all ranks. Batches of a pass differ by at most one clip."""

    microbatch_gb: float | None = None
    """Memory for one microbatch, in GB. A batch runs as the fewest microbatches that fit. Without it, the free memory of
    the device, measured at the start."""

    peak_lr: float = 5e-5
    """Learning rate after warm-up."""

    warmup_ratio: float = 0.01
    """Ratio of all steps, or of train.minutes, in which the learning rate rises linearly."""

    final_lr_ratio: float = 0.1
    """Learning rate at the end of the cosine schedule, relative to the peak."""

    weight_decay: float = 0.1
    """Decoupled weight decay of AdamW, on matrices only."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""

    clip_norm: float = 1.0
    """Largest norm of the gradient; a larger gradient is scaled down to it."""

    start: str | None = None
    """An ear on the same base models whose connector to start from: an ear's folder, a run's folder, an ear's hub id,
    or the embedded "pocket/ear". Without it, training starts from a new connector."""

    start_ratio: float = 0.0
    """Share of the weights before training in the weights of the finished ear. Half of them keeps most of what the ear
    knew of other speech, and half of what it learned; the state to resume from is not averaged."""

    seed: int = 0
    """Seed of the order of clips, of augmentation and of new weights."""

    save_every: int = 500
    """Steps between checkpoints."""

    frozen_placement: Literal["auto", "replicated", "sharded"] = "auto"
    """Placement of the frozen LLM and encoder. replicated: whole on each rank; sharded: each rank holds a part of their
    layers (FSDP2); auto: sharded if they would fill more than half of a rank's memory."""

    llm_bits: Literal[16, 8, 4] = 16
    """Bits of the LLM's weights while training (8 and 4 need bitsandbytes). The weights are only used to pass gradients
    to the audio tokens."""

    def __post_init__(self) -> None:
        """Raise ConfigError for invalid numbers."""
        check(self.start != "", "train.start", "", "an ear's folder, or to be left out")
        for name in ("n_steps", "batch_size", "save_every"):
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("minutes", "microbatch_gb"):
            if getattr(self, name) is not None:
                _check_positive(f"train.{name}", getattr(self, name))
        for name in ("peak_lr", "clip_norm"):
            _check_positive(f"train.{name}", getattr(self, name))
        for name in ("warmup_ratio", "final_lr_ratio", "start_ratio"):
            _check_ratio(f"train.{name}", getattr(self, name))
        check(0 <= self.weight_decay < math.inf, "train.weight_decay", self.weight_decay, "zero or more")
        check(
            all(0 <= beta < 1 for beta in self.betas),
            "train.betas",
            self.betas,
            "two numbers from 0 to below 1",
        )
        check(0 <= self.seed < 2**63, "train.seed", self.seed, "an integer from 0 to below 2**63")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one distillation run."""

    out: str
    """Folder of the run, for the ear, its checkpoints and its metrics."""

    base: BaseSettings = field(default_factory=BaseSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that exclude each other."""
        check(bool(self.out), "out", self.out, "a folder such as runs/mine")
        check(
            self.connector.is_one_to_one or self.objective.hidden_positions != "all",
            "objective.hidden_positions",
            "all",
            f"last or suffix: form {self.connector.form} has no audio token for each token of the transcript",
        )
        check_silence_margin(self.base)
        check_window(self.base, self.connector)
        check(
            self.connector.uses_shared_vocabulary or self.objective.anchor_weight == 0,
            "objective.anchor_weight",
            self.objective.anchor_weight,
            'zero: only form autoregressive with init "whisper" hears words before training',
        )
        check(
            self.data.concat_ratio == 0 or self.data.feature_cache is None,
            "data.feature_cache",
            self.data.feature_cache,
            "to be left out: data.concat_ratio draws new examples in each pass, and stored features would fix them",
        )
        check(
            self.data.feature_cache is None
            or self.objective.anchor_weight == 0
            or (self.augment == AugmentSettings() and self.data.n_augmented_views == 1),
            "data.feature_cache",
            self.data.feature_cache,
            "to be left out: objective.anchor_weight needs the sound before augmentation, too",
        )


def load_recipe(path: Path) -> Recipe:
    """Returns the recipe in a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML, or a key or a value in it is invalid
    """
    try:
        text = read_text_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); expected a recipe such as recipes/pocket.toml"
        ) from error
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: of an impossible date, too
        reason = "tables or lists too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"{path}: not TOML ({reason}); expected a recipe such as recipes/pocket.toml"
        ) from error
    try:
        return from_table(Recipe, table, renamed=RENAMED_SETTINGS)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
