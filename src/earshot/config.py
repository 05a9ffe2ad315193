"""What a run is told, as frozen values, from TOML and back; it knows nothing of how the settings are used."""

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from earshot.errors import ConfigError

Settings = TypeVar("Settings")


def _check(is_fine: bool, name: str, given: object, expected: str) -> None:
    if not is_fine:
        raise ConfigError(f"{name} is {given!r}, expected {expected}")


def _check_positive(name: str, given: float) -> None:
    _check(0 < given < math.inf, name, given, "a positive number")


def _check_share(name: str, given: float) -> None:
    _check(0 <= given <= 1, name, given, "a share between 0 and 1")


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
        _check(_is_date(self.date), "prompt.date", self.date, "a date such as '2024-07-26' (YYYY-MM-DD)")


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
        _check(bool(self.encoder), "base.encoder", self.encoder, "a hub id or a local folder")
        _check(bool(self.llm), "base.llm", self.llm, "a hub id or a local folder")


@dataclass(frozen=True, kw_only=True)
class ConnectorSettings:
    """How encoder frames become audio tokens."""

    form: Literal["anchored", "left", "right", "stack"] = "left"
    """anchored: each query stands for a stretch of sound in which a token was spotted; left: slot t is transcript
    token t, with a learned end; right: the published form, so many slots always, aligned to their right end; stack:
    frames side by side through an MLP, aligned like right."""

    init: Literal["whisper", "random"] = "whisper"
    """Whether the decoder stack starts as the encoder's own decoder or from random weights."""

    n_queries: int = 448
    """Learned queries: the most slots a clip can have; in form right, the number it always has."""

    slots_per_second: float = 6.0
    """Cap on the audio tokens of a clip, by its duration (forms left and anchored)."""

    dropout: float = 0.0
    """Share of values that each layer of the connector drops in training (not in form stack)."""

    n_stacked: int = 16
    """Encoder positions side by side in one audio token (form stack)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that are none."""
        _check(self.n_queries >= 1, "connector.n_queries", self.n_queries, "at least 1")
        _check_positive("connector.slots_per_second", self.slots_per_second)
        _check(0 <= self.dropout < 1, "connector.dropout", self.dropout, "a share from 0 to below 1")
        _check(self.n_stacked >= 1, "connector.n_stacked", self.n_stacked, "at least 1")


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

    name_weight: float = 0.0
    """Weight of the cross-entropy of naming each token among the batch's by its audio token's distances: not as
    published; the alignment of a new connector gets going several times sooner with it."""

    end_weight: float = 1.0
    """Weight of the cross-entropy of the learned end (form left)."""

    spot_weight: float = 1.0
    """Weight of the negative log-likelihood of the transcript by what single positions say (form anchored)."""

    kl_weight: float = 0.0
    """Weight of the forward KL divergence of the next-token distribution, the usual way to distil."""

    kl_temperature: float = 1.0
    """Temperature of that divergence."""

    lead_share: float = 0.0
    """Share of the steps in which the other terms lead alone, before hidden states and KL join."""

    def __post_init__(self) -> None:
        """Raise ConfigError for weights that cannot be."""
        for name in (
            "hidden_weight",
            "align_weight",
            "name_weight",
            "end_weight",
            "spot_weight",
            "kl_weight",
        ):
            _check(
                0 <= getattr(self, name) < math.inf, f"objective.{name}", getattr(self, name), "zero or more"
            )
        _check_positive("objective.kl_temperature", self.kl_temperature)
        _check_share("objective.lead_share", self.lead_share)
        _check(
            self.hidden_weight + self.align_weight + self.kl_weight > 0,
            "objective.align_weight",
            self.align_weight,
            "a positive number, as objective.hidden_weight and objective.kl_weight are zero too",
        )
        _check(
            self.align_weight > 0 or self.lead_share == 0,
            "objective.lead_share",
            self.lead_share,
            "0, as objective.align_weight is zero and nothing would lead",
        )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The transcribed speech to distil from."""

    source: str = "pocket/speech"
    """A parquet file with audio and text columns, a JSONL manifest, or the embedded "pocket/speech"."""

    n_clips: int | None = None
    """Only the first so many clips; none for all."""

    n_views: int = 1
    """In how many ways each clip is heard, one pass after the other: the first time as it is, then from another
    throat, at another tempo, in a room, through a microphone, with noise."""

    cache_features: bool = False
    """Keep encoder features in memory from one pass to the next (bfloat16, each view its own; for small sets)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a source without a name or a number of clips that is none."""
        _check(bool(self.source), "data.source", self.source, "a .parquet or .jsonl file, or pocket/speech")
        _check(self.n_clips is None or self.n_clips >= 1, "data.n_clips", self.n_clips, "at least 1")
        _check(self.n_views >= 1, "data.n_views", self.n_views, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the connector is optimised."""

    n_steps: int = 4_300
    """Optimizer steps."""

    batch_size: int = 512
    """Most clips to an optimizer step; all batches of a pass have as many, give or take one."""

    n_accumulated: int = 1
    """Parts a batch is run in, one after the other, to save memory."""

    peak_lr: float = 5e-5
    """Learning rate after warm-up."""

    warmup_share: float = 0.01
    """Share of the steps in which the learning rate rises linearly."""

    final_lr_share: float = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""

    weight_decay: float = 0.1
    """AdamW's decoupled weight decay, on matrices only."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging factors."""

    clip_norm: float = 1.0
    """Largest gradient norm."""

    seed: int = 0
    """Of the order of clips and of new weights."""

    save_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that cannot be."""
        for name in ("n_steps", "batch_size", "n_accumulated", "save_every"):
            _check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        _check(
            self.n_accumulated <= self.batch_size,
            "train.n_accumulated",
            self.n_accumulated,
            f"at most train.batch_size = {self.batch_size}",
        )
        for name in ("peak_lr", "clip_norm"):
            _check_positive(f"train.{name}", getattr(self, name))
        for name in ("warmup_share", "final_lr_share"):
            _check_share(f"train.{name}", getattr(self, name))
        _check(0 <= self.weight_decay < math.inf, "train.weight_decay", self.weight_decay, "zero or more")
        _check(
            all(0 <= beta < 1 for beta in self.betas),
            "train.betas",
            self.betas,
            "two numbers from 0 to below 1",
        )
        _check(0 <= self.seed < 2**63, "train.seed", self.seed, "a whole number from 0 to below 2**63")


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
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Raise ConfigError for choices that exclude each other."""
        _check(bool(self.out), "out", self.out, "a folder such as runs/mine")
        one_to_one = self.connector.form in ("left", "anchored")
        _check(
            one_to_one or self.objective.hidden_positions != "all",
            "objective.hidden_positions",
            "all",
            f"last or suffix: form {self.connector.form} has no audio token for each token of the transcript",
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


_TYPE_NAMES = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def from_table(kind: type[Settings], table: dict[str, Any], at: str = "") -> Settings:
    """Settings from a table of plain values; keys that are missing keep their defaults.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type, by its dotted name
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(table) - set(hints)):
        raise ConfigError(f"unknown key {at}{unknown[0]}; expected one of {', '.join(hints)}")
    values = {name: _value(hints[name], given, at + name) for name, given in table.items()}
    for setting in dataclasses.fields(kind):  # ty: ignore[invalid-argument-type]
        has_default = (
            setting.default is not dataclasses.MISSING or setting.default_factory is not dataclasses.MISSING
        )
        if setting.name not in values and not has_default:
            raise ConfigError(
                f"{at}{setting.name} is missing; {_expected(hints[setting.name])} is needed there"
            )
    return kind(**values)


def _value(hint: Any, given: Any, name: str) -> Any:
    """The given value as the type that its field wants."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _check(isinstance(given, dict), name, given, f"a table: [{name}] and its keys below")
        return from_table(hint, given, name + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        _check(given in args, name, given, "one of " + ", ".join(map(repr, args)))
        return given
    if origin is tuple:
        is_of_length = isinstance(given, list | tuple) and len(given) == len(args)
        _check(is_of_length, name, given, f"a list of {len(args)} numbers")
        return tuple(
            _value(arg, item, f"{name}[{n}]") for n, (arg, item) in enumerate(zip(args, given, strict=True))
        )
    if origin in (types.UnionType, typing.Union):
        if given is None:
            return None
        return _value(next(arg for arg in args if arg is not types.NoneType), given, name)
    if hint is float and type(given) is int and abs(given) < 2**53:
        return float(given)
    _check(type(given) is hint, name, given, _expected(hint))
    return given


def _expected(hint: Any) -> str:
    return _TYPE_NAMES.get(hint, "a value")


def to_table(settings: Any) -> dict[str, Any]:
    """Settings as a table of plain values, what is None left out."""
    table = dataclasses.asdict(settings)

    def prune(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: prune(item) for name, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return prune(table)


def to_toml(settings: Any) -> str:
    """Settings as TOML that `from_table` reads back to the same settings."""
    return tomli_w.dumps(to_table(settings))
