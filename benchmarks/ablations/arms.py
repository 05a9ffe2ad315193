"""The arms of the ablations: what each changes against the base, as settings; it trains and measures nothing.

The base is a connector of form anchored, which learns from nothing what words sound like, and the pocket recipe with
one view of each clip, naming, and hidden states from half of the steps on. An arm changes what its name says and
nothing else, but for what the settings rule out: without alignment nothing can lead, and forms aligned to the right
have no audio token for each token of the transcript, so that theirs are compared on the suffix. Form autoregressive
begins as a recogniser: it learns as the pocket recipe has it, with a tenth of the base's learning rate and no naming,
unless it begins from random weights.
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
"""Ends the names of the arms that learn transcripts with commas."""
N_SLOTS = 64
"""Slots of the forms that always have as many: all positions of the pocket Whisper's decoder."""
N_STACKED = 6
"""Encoder positions to an audio token of the stacking MLP: 8.3 tokens a second, where loose words come at up to 6."""
KL_WEIGHT = 0.1
"""With it KL's gradient on the connector is as large as that of hidden states with the recipe's weight: in a trial with
two ears of 1,000 steps on eight batches the weight that makes them equal was 0.06 to 0.32, in the middle 0.09."""
COMMA_RATIO = 1 / 3
"""Share of the words behind which punctuated transcripts have a comma that nobody speaks."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one arm changes against the base."""

    name: str
    connector: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    speech_ratio: float = 1.0
    """Share of the pocket speech that it learns from, in as many steps."""
    window: Literal["sound", "full"] = "sound"
    is_punctuated: bool = False
    """Whether it learns transcripts with commas that are not spoken."""
    peak_lr: float = 2e-3
    is_measured_in_noise: bool = False
    """Whether it is asked the questions in noise too."""

    @property
    def plain(self) -> str | None:
        """The arm that learned the same from transcripts as they are, of one that learned them punctuated."""
        return self.name.removesuffix(PUNCTUATED) if self.is_punctuated else None

    @property
    def slug(self) -> str:
        """Its name as a folder has it."""
        words = self.name.replace("%", "percent").replace(",", "")
        return "-".join(words.split()).lower()


_ONE_BY_ONE, _GENTLE_LR = {"form": "autoregressive"}, 2e-4
_KNOWING = {"token_ce_weight": 0.0}
_RIGHT = {"form": "diva", "n_queries": N_SLOTS}
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
            connector=_ONE_BY_ONE,
            objective=_KNOWING,
            peak_lr=_GENTLE_LR,
            is_measured_in_noise=True,
        ),
        Arm(name="autoregressive, random init", connector=_ONE_BY_ONE | {"init": "random"}, peak_lr=7e-4),
        Arm(name="query", connector={"form": "query"}, is_measured_in_noise=True),
        Arm(name="diva", connector=_RIGHT, objective=_SUFFIX, is_measured_in_noise=True),
        Arm(
            name="published", connector=_RIGHT, objective=_PUBLISHED, window="full", is_measured_in_noise=True
        ),
        Arm(name=BASE + ", full window", window="full"),
        Arm(name="30 % of the speech", speech_ratio=0.3),
        Arm(name="10 % of the speech", speech_ratio=0.1),
        Arm(name=BASE + PUNCTUATED, is_punctuated=True),
        Arm(
            name="autoregressive" + PUNCTUATED,
            connector=_ONE_BY_ONE,
            objective=_KNOWING,
            peak_lr=_GENTLE_LR,
            is_punctuated=True,
        ),
        Arm(name="query" + PUNCTUATED, connector={"form": "query"}, is_punctuated=True),
        Arm(name="diva" + PUNCTUATED, connector=_RIGHT, objective=_SUFFIX, is_punctuated=True),
    )
}


def build_recipe(arm: Arm, seed: int, n_steps: int, out: Path) -> Recipe:
    """An arm's recipe; all arms that hear the same sound share the features that are kept of it."""
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
    """Where an arm's run with a seed is kept."""
    return out / f"{arm.slug}-{seed}"


def count_clips(share: float) -> int:
    """So many of the pocket speech, whose clips lie in no order."""
    return round(share * pq.read_metadata(resolve_model_path(POCKET_SPEECH) + ".parquet").num_rows)


def write_punctuated_speech(out: Path) -> Path:
    """The pocket speech with commas in its transcripts, made if it is not there yet."""
    path = out / "speech-punctuated.parquet"
    if not path.exists():
        table = pq.read_table(resolve_model_path(POCKET_SPEECH) + ".parquet")
        rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
        texts = pa.array([add_commas(text, row) for row, text in rows])
        place = table.schema.get_field_index("text")
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            pq.write_table(table.set_column(place, "text", texts), temporary, row_group_size=256)
    return path


def add_commas(text: str, row: str) -> str:
    """A transcript with commas behind some of its words, but for the last; which ones, the row's id draws."""
    rng = random.Random(row)
    *words, last = text.split()
    return " ".join([word + "," if rng.random() < COMMA_RATIO else word for word in words] + [last])
