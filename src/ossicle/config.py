"""What a run is told, as frozen values; it knows nothing of how the settings are used."""

import math
import tomllib
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from ossicle.errors import ConfigError
from ossicle.settings_io import check, from_table


def _check_positive(name: str, given: float) -> None:
    check(0 < given < math.inf, name, given, "a positive number")


def _check_share(name: str, given: float) -> None:
    check(0 <= given <= 1, name, given, "a share between 0 and 1")


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """What the LLM is told beside the user's words, in training and at inference alike."""

    system: str | None = None
    """System prompt of conversations that bring none; without it the chat template's default holds."""

    date: str = "2024-07-26"
    """Today (YYYY-MM-DD) to chat templates that print it; pinned, so that stored teacher states stay true."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a date that is none."""
        check(_is_date(self.date), "prompt.date", self.date, "a date such as '2024-07-26' (YYYY-MM-DD)")


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """The two frozen models that the connector joins."""

    encoder: str = "pocket/whisper"
    """A Whisper: hub id, local folder, or the embedded "pocket/whisper"."""

    encoder_revision: str | None = None
    """Branch, tag or commit of the encoder on the hub."""

    llm: str = "pocket/llm"
    """A causal LM with a chat template: hub id, local folder, or the embedded "pocket/llm"."""

    llm_revision: str | None = None
    """Branch, tag or commit of the LLM on the hub."""

    encoder_window: Literal["sound", "full"] = "sound"
    """Whether the encoder runs on the seconds there are or always on its full window (Whisper's 30 s)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a base without a name."""
        check(bool(self.encoder), "base.encoder", self.encoder, "a hub id or a local folder")
        check(bool(self.llm), "base.llm", self.llm, "a hub id or a local folder")


@dataclass(frozen=True, kw_only=True)
class ConnectorSettings:
    """How encoder frames become audio tokens."""

    form: Literal["anchored", "autoregressive", "left", "right", "stack"] = "autoregressive"
    """autoregressive: slot t is transcript token t, one after the other, each told what the one before it became,
    with a learned end; it begins as the recogniser that the decoder is of; left: the same, all at once and told
    nothing; anchored: all at once, each query for a stretch of sound in which a token was spotted; right: the
    published form, so many slots always, aligned to their right end; stack: frames side by side through an MLP,
    aligned like right."""

    init: Literal["whisper", "random"] = "whisper"
    """Whether the decoder stack starts as the encoder's own decoder or from random weights."""

    n_layers: int | None = None
    """Layers of the decoder stack, taken from the encoder's decoder at even distances; none for all it has (not in
    form stack)."""

    n_queries: int = 448
    """Learned queries: the most slots a clip can have; in form right, the number it always has."""

    slots_per_second: float = 6.0
    """Cap on the audio tokens of a clip, by its duration (forms whose audio tokens match the transcript's)."""

    dropout: float = 0.0
    """Share of values that each layer of the connector drops in training (not in form stack)."""

    n_stacked: int = 16
    """Encoder positions side by side in one audio token (form stack)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that are none."""
        check(self.n_queries >= 1, "connector.n_queries", self.n_queries, "at least 1")
        check(self.n_layers is None or self.n_layers >= 1, "connector.n_layers", self.n_layers, "at least 1")
        _check_positive("connector.slots_per_second", self.slots_per_second)
        check(0 <= self.dropout < 1, "connector.dropout", self.dropout, "a share from 0 to below 1")
        check(self.n_stacked >= 1, "connector.n_stacked", self.n_stacked, "at least 1")

    @property
    def is_one_to_one(self) -> bool:
        """Whether audio tokens match the transcript's one to one."""
        return self.form in ("anchored", "autoregressive", "left")

    @property
    def knows_words(self) -> bool:
        """Whether it says the words of the encoder's decoder as far as the LLM has them too."""
        return self.form == "autoregressive" and self.init == "whisper"

    @property
    def learns_end(self) -> bool:
        """Whether a head says which slot is past the last token."""
        return self.form in ("autoregressive", "left")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What the student is pulled towards, term by term."""

    hidden_weight: float = 1.0
    """Weight of the L2 distance between the LLM's final hidden states on sound and on text."""

    hidden_positions: Literal["last", "suffix", "all"] = "last"
    """Where that distance is taken: the last position (as published), all positions after the sound, or those
    and the sound's own (forms whose audio tokens match the transcript's one to one)."""

    align_weight: float = 1.0
    """Weight of the L2 distance between audio tokens and the transcript's embeddings."""

    token_ce_weight: float = 0.0
    """Weight of the cross-entropy of naming each token among the batch's by its audio token's distances: not as
    published; the alignment of a new connector gets going several times sooner with it."""

    end_weight: float = 1.0
    """Weight of the cross-entropy of the learned end (forms left and autoregressive)."""

    asr_weight: float = 1.0
    """Weight of the negative log-likelihood of the transcript: by what single positions say (form anchored), or by
    the words that Whisper and the LLM have in common, as a recogniser learns (form autoregressive)."""

    kl_weight: float = 0.0
    """Weight of the forward KL divergence of the next-token distribution, the usual way to distil."""

    kl_temperature: float = 1.0
    """Temperature of that divergence."""

    n_response_tokens: int = 1
    """First tokens of the LLM's own greedy answer at whose positions hidden states are compared too; 1 compares at
    the position that predicts the first of them, as published."""

    align_only_ratio: float = 0.0
    """Share of the steps in which the other terms lead alone, before hidden states and KL join."""

    def __post_init__(self) -> None:
        """Raise ConfigError for weights that cannot be."""
        for name in (
            "hidden_weight",
            "align_weight",
            "token_ce_weight",
            "end_weight",
            "asr_weight",
            "kl_weight",
        ):
            check(
                0 <= getattr(self, name) < math.inf, f"objective.{name}", getattr(self, name), "zero or more"
            )
        check(
            self.n_response_tokens >= 1, "objective.n_response_tokens", self.n_response_tokens, "at least 1"
        )
        _check_positive("objective.kl_temperature", self.kl_temperature)
        _check_share("objective.align_only_ratio", self.align_only_ratio)
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
            "0, as objective.align_weight is zero and nothing would lead",
        )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The transcribed speech to distil from."""

    source: tuple[str, ...] = ("pocket/speech",)
    """One source or several: a parquet, JSONL or tar file (or a pattern of such), a packed folder, a Hugging Face
    data set by hub id or local folder, or the embedded "pocket/speech"; options behind a "?", such as
    "user/speech?config=en&split=train&text=sentence&weight=2"."""

    n_clips: int | None = None
    """Only the first so many clips; none for all."""

    max_invalid_ratio: float = 0.01
    """Share of rows that may be skipped as unusable (each is listed in skipped.jsonl); more stop the run."""

    concat_ratio: float = 0.0
    """Share of the examples that are several clips in a row, up to the encoder's window: long questions need it."""

    n_augmented_views: int = 1
    """In how many ways each clip is heard, one pass after the other: the first time as it is, then from another
    throat, at another tempo, in a room, through a microphone, with noise."""

    feature_cache: str | None = None
    """Folder to keep encoder features in, for small sets and many passes (bfloat16, each view its own; what `augment`
    draws is drawn once for each view then, not in every pass). Of sound inside tables and tars they are known by row
    and transcript: remove the folder where it was replaced there."""

    teacher_cache: str | None = None
    """Folder of the teacher's states: what is there is used, what is not is computed in the step."""

    n_workers: int = 2
    """Processes of each rank that read, decode and analyse sound; 0 does it in the training process."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a source without a name or a number of clips that is none."""
        expected = "a .parquet, .jsonl or .tar file, a data set, or pocket/speech"
        check(bool(self.source) and all(self.source), "data.source", self.source, expected)
        check(self.n_clips is None or self.n_clips >= 1, "data.n_clips", self.n_clips, "at least 1")
        check(self.n_augmented_views >= 1, "data.n_augmented_views", self.n_augmented_views, "at least 1")
        check(self.n_workers >= 0, "data.n_workers", self.n_workers, "zero or more")
        _check_share("data.max_invalid_ratio", self.max_invalid_ratio)
        _check_share("data.concat_ratio", self.concat_ratio)
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
    """How clips are changed before they are heard, each time anew; nothing is, as it stands here."""

    noise_ratio: float = 0.0
    """Share of the clips that get noise."""

    noise: str | None = None
    """Folder of sound files to take the noise from; without it, noise of a random colour is made."""

    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    """Lowest and highest ratio of speech to noise, in decibels."""

    speed: tuple[float, float] = (1.0, 1.0)
    """Slowest and fastest speed, as a factor; pitch moves with it."""

    silence_ratio: float = 0.0
    """Share of the clips that get up to 1.5 seconds of silence before and as much behind; noise covers it too."""

    spec_augment: bool = False
    """Whether stretches of time and bands of frequency are blanked out."""

    def __post_init__(self) -> None:
        """Raise ConfigError for ranges that are none."""
        for name in ("noise_ratio", "silence_ratio"):
            _check_share(f"augment.{name}", getattr(self, name))
        for name in ("noise_snr_db", "speed"):
            low, high = getattr(self, name)
            is_range = -math.inf < low <= high < math.inf
            check(is_range, f"augment.{name}", (low, high), "two finite numbers, the smaller one first")
        check(
            self.speed[0] >= 0.5 and self.speed[1] <= 2, "augment.speed", self.speed, "factors from 0.5 to 2"
        )
        check(self.noise != "", "augment.noise", "", "a folder, or to be left out")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the connector is optimised."""

    n_steps: int = 4_300
    """Optimizer steps."""

    batch_size: int = 512
    """Most clips to an optimizer step; all batches of a pass have as many, give or take one."""

    microbatch_gb: float | None = None
    """Memory for the parts that a batch is run in, as few as fit, one after the other; none for what is left on the
    device, found by a probe at the start."""

    peak_lr: float = 5e-5
    """Learning rate after warm-up."""

    warmup_ratio: float = 0.01
    """Share of the steps in which the learning rate rises linearly."""

    final_lr_ratio: float = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""

    weight_decay: float = 0.1
    """AdamW's decoupled weight decay, on matrices only."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging factors."""

    clip_norm: float = 1.0
    """Largest gradient norm."""

    start: str | None = None
    """An ear on the same bases whose connector to start from, in place of a new one: an ear's folder, a run's, or the
    embedded "pocket/ear"."""

    seed: int = 0
    """Of the order of clips and of new weights."""

    save_every: int = 500
    """Steps between checkpoints."""

    frozen: Literal["auto", "replicated", "sharded"] = "auto"
    """Whether each rank holds the whole LLM and encoder or a share of their layers (FSDP2); auto shards what would
    fill more than half of a rank's memory."""

    llm_bits: Literal[16, 8, 4] = 16
    """Bits of the LLM's weights while training, of which only the gradient's way needs it (8 and 4: bitsandbytes)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that cannot be."""
        check(self.start != "", "train.start", "", "an ear's folder, or to be left out")
        for name in ("n_steps", "batch_size", "save_every"):
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        if self.microbatch_gb is not None:
            _check_positive("train.microbatch_gb", self.microbatch_gb)
        for name in ("peak_lr", "clip_norm"):
            _check_positive(f"train.{name}", getattr(self, name))
        for name in ("warmup_ratio", "final_lr_ratio"):
            _check_share(f"train.{name}", getattr(self, name))
        check(0 <= self.weight_decay < math.inf, "train.weight_decay", self.weight_decay, "zero or more")
        check(
            all(0 <= beta < 1 for beta in self.betas),
            "train.betas",
            self.betas,
            "two numbers from 0 to below 1",
        )
        check(0 <= self.seed < 2**63, "train.seed", self.seed, "a whole number from 0 to below 2**63")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One distillation, whole."""

    out: str
    """Folder of the run: the ear, its checkpoints and its metrics."""

    base: BaseSettings = field(default_factory=BaseSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Raise ConfigError for choices that exclude each other."""
        check(bool(self.out), "out", self.out, "a folder such as runs/mine")
        check(
            self.connector.is_one_to_one or self.objective.hidden_positions != "all",
            "objective.hidden_positions",
            "all",
            f"last or suffix: form {self.connector.form} has no audio token for each token of the transcript",
        )
        check(
            self.data.concat_ratio == 0 or self.data.feature_cache is None,
            "data.feature_cache",
            self.data.feature_cache,
            "to be left out: data.concat_ratio makes every example anew, kept features would not",
        )


def load_recipe(path: Path) -> Recipe:
    """A recipe from its TOML file.

    Raises:
        ConfigError: no such file, not TOML, a key nobody knows, or a value that cannot be
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); expected a recipe such as recipes/pocket.toml"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error
    try:
        return from_table(Recipe, table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
