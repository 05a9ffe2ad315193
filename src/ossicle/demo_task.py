"""What a demo learns from and is evaluated on: the pocket world, or real models and the user's own recordings."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.backbones.model_files import resolve_model_path
from ossicle.config import Recipe, load_recipe
from ossicle.console_progress import ProgressCallback
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.ear import Ear
from ossicle.errors import DataError
from ossicle.evaluation import AudioModel, Corruption, Item, Suite, open_suite
from ossicle.evaluation.dictation import Dictation
from ossicle.evaluation.text_normalization import normalize_text
from ossicle.real_models import find_real_model

POCKET_CLIPS_PER_MINUTE = 1_500
"""Training clips for each minute: with all of them, a short run would spend its time on encoding."""
N_POCKET_ITEMS = 276
"""A third of the pocket suite: enough for an interval of ten points, and evaluated in a minute or two."""
N_REAL_ITEMS = 60
_HELD_OUT_RATIO = 0.2
"""Largest part of the user's rows that is held out."""
_MIN_REAL_ITEMS = 4
"""With fewer, there would be no babble of other voices."""
CORRUPTIONS = (
    Corruption(kind="white noise", level=10.0),
    Corruption(kind="white noise", level=5.0),
    Corruption(kind="babble", level=10.0),
)


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """The training and the evaluation of a demo."""

    recipe: Recipe
    suite: Suite
    corruptions: tuple[Corruption, ...] = CORRUPTIONS
    batch_size: int
    """Items in one batch of the evaluation."""
    get_model: Callable[[Ear], AudioModel]
    """Returns what is evaluated of an ear: itself, or what it writes down."""
    holds_out_rows: bool
    """Whether the items are rows of the speech that it is trained on, behind those."""
    measure: str
    """What the numbers are, for a title."""


def build_pocket_task(out: Path, minutes: float) -> DemoTask:
    """Returns the task of the embedded models and speech: a random third of the spoken questions of the suite."""
    recipe = _load_demo_recipe("demo.toml", out, minutes)
    n_clips = max(recipe.train.batch_size, round(minutes * POCKET_CLIPS_PER_MINUTE))
    data = replace(recipe.data, n_clips=n_clips, feature_cache=str(out / "features"))
    suite = open_suite("pocket")
    n_items = min(N_POCKET_ITEMS, len(suite.items))
    chosen = set(random.Random(0).sample(range(len(suite.items)), n_items))
    items = tuple(item for index, item in enumerate(suite.items) if index in chosen)
    return DemoTask(
        recipe=replace(recipe, data=data),
        suite=replace(suite, items=items),
        batch_size=64,
        get_model=lambda ear: ear,
        holds_out_rows=False,
        measure="right answers to spoken questions in unseen voices; training has no questions",
    )


def build_real_task(
    out: Path, minutes: float, speech: str, progress: ProgressCallback | None = None
) -> DemoTask:
    """Returns the task of Whisper tiny.en and SmolLM2-135M with the user's speech; its last rows are held out.

    Args:
        speech: a data source, as `data.source` takes it

    Raises:
        DataError: speech that cannot be used, or too few rows with sentences of their own at its end
        CheckpointError: a model that cannot be downloaded
    """
    dataset = open_speech([speech])
    n_training_rows, items = hold_out_items(dataset, speech)
    recipe = _load_demo_recipe("demo-real.toml", out, minutes)
    encoder, llm = (find_real_model(name, progress) for name in ("whisper-tiny.en", "smollm2-135m-instruct"))
    return DemoTask(
        recipe=replace(
            recipe,
            base=replace(recipe.base, encoder=encoder, llm=llm),
            data=replace(recipe.data, source=(speech,), n_clips=n_training_rows),
        ),
        suite=Suite(
            name="the last rows of the speech",
            items=items,
            description=f"{len(items)} of the last {len(dataset) - n_training_rows} rows of {speech}, which were never"
            " trained on; the ear's answers are the words that it writes down, those to the text are the transcript",
        ),
        batch_size=8,
        get_model=Dictation,
        holds_out_rows=True,
        measure="word error rate of what is written down, on rows that were not trained on; less is better",
    )


def hold_out_items(speech: SpeechDataset, name: str) -> tuple[int, tuple[Item, ...]]:
    """Returns the number of rows to train on, and items of the rows after them whose sentences those do not have.

    Raises:
        DataError: fewer items than an evaluation needs, or an invalid row among them
    """
    n_rows = len(speech)
    n_training_rows = n_rows - int(min(4 * N_REAL_ITEMS, _HELD_OUT_RATIO * n_rows))
    if speech.texts.null_count == n_rows:
        raise DataError(
            f"--speech {name}: its transcripts are known only while it is read; give a JSONL or parquet file"
        )
    texts = [normalize_text(text or "") for text in speech.texts.to_pylist()]
    trained = set(texts[:n_training_rows])
    by_text = {
        text: row for row, text in enumerate(texts) if row >= n_training_rows and text not in trained | {""}
    }
    if len(by_text) < _MIN_REAL_ITEMS:
        raise DataError(
            f"--speech {name}: {len(by_text)} of the last {n_rows - n_training_rows} of its {n_rows} rows have sentences"
            f" that the other rows do not have, and an evaluation needs {_MIN_REAL_ITEMS}; give more recordings, with"
            " other speakers and sentences at the end"
        )
    spacing = max(1, len(by_text) // N_REAL_ITEMS)
    rows = sorted(by_text.values())[::spacing][:N_REAL_ITEMS]
    utterances = [(row, speech[row]) for row in rows]
    return n_training_rows, tuple(
        Item(id=f"row {row}", audio=utterance.audio, text=utterance.text, answer=utterance.text, rule="wer")
        for row, utterance in utterances
    )


def _load_demo_recipe(name: str, out: Path, minutes: float) -> Recipe:
    recipe = load_recipe(Path(resolve_model_path(f"pocket/{name}")))
    return replace(recipe, out=str(out), train=replace(recipe.train, minutes=minutes))
