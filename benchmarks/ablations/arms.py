"""The arms of the ablations: which settings each changes against the base.

The base is a connector of form anchored, which starts without knowing how words sound, and the pocket recipe with one
view of each clip, token cross-entropy, and hidden states from half of the steps on. An arm changes what its name says
and nothing else, except for what the settings rule out: without alignment there is no alignment-only warm-up, and forms
aligned to the right have no audio token for each token of the transcript, so that their hidden states are compared on
the suffix. Form autoregressive starts as an ASR model: it trains as in the pocket recipe, with a tenth of the base's
learning rate and without token cross-entropy, unless it starts from random weights.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ossicle.atomic_io import atomic_write
from ossicle.backbones.model_files import resolve_model_path
from ossicle.config import AugmentSettings, Recipe, load_recipe
from ossicle.data.source_spec import POCKET_SPEECH

BASE = "anchored"
PUNCTUATED = ", punctuated"
"""Suffix of the names of arms that learn transcripts with commas."""
N_SLOTS = 64
"""Slots of the form with a fixed number: all positions of the pocket Whisper's decoder."""
N_STACKED = 6
"""Encoder positions for each audio token of the stacking MLP: 8.3 tokens a second; single words come at up to 6."""
KL_WEIGHT = 0.1
"""With this weight KL's gradient on the connector is as large as that of hidden states with the recipe's weight: for two
ears of 1,000 steps and eight batches the weight that makes them equal was 0.06 to 0.32, with a median of 0.09."""
COMMA_RATIO = 1 / 3
"""Ratio of the words that punctuated transcripts follow with a comma, which is not spoken."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The settings that one arm changes against the base."""

    name: str
    connector: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    speech_ratio: float = 1.0
    """Ratio of the pocket speech that it learns from, in as many steps."""
    window: Literal["sound", "full"] = "sound"
    is_punctuated: bool = False
    """Whether it learns transcripts with commas that are not spoken."""
    peak_lr: float = 2e-3
    is_measured_in_noise: bool = False
    """Whether it is also measured on the questions in noise."""

    @property
    def plain(self) -> str | None:
        """The name of the same arm with plain transcripts, for an arm with punctuated ones."""
        return self.name.removesuffix(PUNCTUATED) if self.is_punctuated else None

    @property
    def slug(self) -> str:
        """The name for folders."""
        words = self.name.replace("%", "percent").replace(",", "")
        return "-".join(words.split()).lower()


_AUTOREGRESSIVE, _LOW_LR = {"form": "autoregressive"}, 2e-4
_NO_TOKEN_CE = {"token_ce_weight": 0.0}
_DIVA = {"form": "diva", "n_queries": N_SLOTS}
_STACK = {"form": "stack", "n_stacked": N_STACKED}
_SUFFIX = {"hidden_positions": "suffix"}
_NO_INPUT = {"align_weight": 0.0, "token_ce_weight": 0.0, "align_only_ratio": 0.0}
_KL = {"hidden_weight": 0.0, "kl_weight": KL_WEIGHT}
_PUBLISHED = {"hidden_positions": "last", "token_ce_weight": 0.0, "align_only_ratio": 0.0}

ARMS = {
    arm.name: arm
    for arm in (
        Arm(name=BASE, is_measured_in_noise=True),
        Arm(name="hidden only", objective=_NO_INPUT),
        Arm(name="alignment only", objective={"hidden_weight": 0.0}),
        Arm(name="KL only", objective=_NO_INPUT | _KL),
        Arm(name="KL in place of hidden", objective=_KL),
        Arm(name="no naming", objective={"token_ce_weight": 0.0}),
        Arm(name="first 8 answer positions", objective={"n_response_tokens": 8}),
        Arm(name="hidden at last", objective={"hidden_positions": "last"}),
        Arm(name="hidden at suffix", objective=_SUFFIX),
        Arm(name="random init", connector={"init": "random"}),
        Arm(name="stacking MLP", connector=_STACK, objective=_SUFFIX, is_measured_in_noise=True),
        Arm(name="4 layers", connector={"n_layers": 4}),
        Arm(name="2 layers", connector={"n_layers": 2}),
        Arm(
            name="autoregressive",
            connector=_AUTOREGRESSIVE,
            objective=_NO_TOKEN_CE,
            peak_lr=_LOW_LR,
            is_measured_in_noise=True,
        ),
        Arm(name="autoregressive, random init", connector=_AUTOREGRESSIVE | {"init": "random"}, peak_lr=7e-4),
        Arm(name="query", connector={"form": "query"}, is_measured_in_noise=True),
        Arm(name="diva", connector=_DIVA, objective=_SUFFIX, is_measured_in_noise=True),
        Arm(
            name="published", connector=_DIVA, objective=_PUBLISHED, window="full", is_measured_in_noise=True
        ),
        Arm(name=BASE + ", full window", window="full"),
        Arm(name="30 % of the speech", speech_ratio=0.3),
        Arm(name="10 % of the speech", speech_ratio=0.1),
        Arm(name=BASE + PUNCTUATED, is_punctuated=True),
        Arm(
            name="autoregressive" + PUNCTUATED,
            connector=_AUTOREGRESSIVE,
            objective=_NO_TOKEN_CE,
            peak_lr=_LOW_LR,
            is_punctuated=True,
        ),
        Arm(name="query" + PUNCTUATED, connector={"form": "query"}, is_punctuated=True),
        Arm(name="diva" + PUNCTUATED, connector=_DIVA, objective=_SUFFIX, is_punctuated=True),
    )
}


def build_recipe(arm: Arm, seed: int, n_steps: int, out: Path) -> Recipe:
    """Builds an arm's recipe; all arms with the same sound and window share a feature cache."""
    pocket = load_recipe(Path(resolve_model_path("pocket/recipe.toml")))
    features = "punctuated" if arm.is_punctuated else arm.window
    speech = {"source": (str(write_punctuated_speech(out)),)} if arm.is_punctuated else {}
    return replace(
        pocket,
        out=str(get_run_folder(arm, seed, out)),
        base=replace(pocket.base, encoder_window=arm.window),
        connector=replace(pocket.connector, **({"form": "anchored", "dropout": 0.1} | dict(arm.connector))),
        objective=replace(
            pocket.objective, **({"token_ce_weight": 1.0, "align_only_ratio": 0.5} | dict(arm.objective))
        ),
        data=replace(
            pocket.data,
            n_augmented_views=1,
            n_workers=0,
            feature_cache=str(out / f"features-{features}"),
            n_clips=None if arm.speech_ratio == 1 else count_clips(arm.speech_ratio),
            **speech,
        ),
        augment=AugmentSettings(),
        train=replace(pocket.train, n_steps=n_steps, seed=seed, peak_lr=arm.peak_lr, warmup_ratio=0.02),
    )


def get_run_folder(arm: Arm, seed: int, out: Path) -> Path:
    """Returns the folder of an arm's run with a seed."""
    return out / f"{arm.slug}-{seed}"


def count_clips(ratio: float) -> int:
    """Returns the number of clips that are a ratio of the pocket speech, which is in random order."""
    return round(ratio * pq.read_metadata(resolve_model_path(POCKET_SPEECH) + ".parquet").num_rows)


def write_punctuated_speech(out: Path) -> Path:
    """Writes the pocket speech with commas in its transcripts, if it does not exist; returns its path."""
    path = out / "speech-punctuated.parquet"
    if not path.exists():
        table = pq.read_table(resolve_model_path(POCKET_SPEECH) + ".parquet")
        rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
        texts = pa.array([add_commas(text, row) for row, text in rows])
        column = table.schema.get_field_index("text")
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            pq.write_table(table.set_column(column, "text", texts), temporary, row_group_size=256)
    return path


def add_commas(text: str, row: str) -> str:
    """Adds commas after some words of a transcript, never the last; the row's id draws which."""
    rng = random.Random(row)
    *words, last = text.split()
    return " ".join([word + "," if rng.random() < COMMA_RATIO else word for word in words] + [last])
