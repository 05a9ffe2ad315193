"""The whole method in a few minutes on two cores: distill the embedded LLM, evaluate it, ask it a spoken question."""

import math
import random
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ossicle import checkpoint
from ossicle.atomic_io import atomic_write, lock_folder
from ossicle.audio.microphone import Microphone
from ossicle.audio.waveform import load_audio
from ossicle.backbones.model_files import resolve_model_path
from ossicle.config import Recipe, load_recipe
from ossicle.console_progress import ConsoleProgress
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.evaluation import (
    EvaluationSettings,
    Item,
    Report,
    Suite,
    build_model_card_table,
    evaluate,
    open_suite,
    print_table,
    write_report,
)
from ossicle.html_page import encode_wav
from ossicle.training.run import with_n_steps
from ossicle.training.run_log import TrainingProgress, read_metrics
from ossicle.training.setup import build_run
from ossicle.training.step_timing import count_steps_within
from ossicle.training.trainer import train_run

SHIPPED_EAR = "pocket/ear"
CLIPS_PER_MINUTE = 2_500
"""Training clips for each minute of the demo. With all clips, a short run would spend its time on encoding them."""
EVAL_BATCH_SIZE = 64
"""Items of the suite in one batch. It can be large, as items and answers are short."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedEar:
    """An ear with its report, and the text that distinguishes it from the other ear."""

    name: str
    ear: Ear
    report: Report


def run_demo(
    out: Path,
    minutes: float,
    console: Console,
    *,
    program: str,
    command: str,
    uses_microphone: bool = False,
) -> None:
    """Distills an ear, evaluates it, writes the reports and answers one spoken question.

    Args:
        program: how to call ossicle on this computer, for the suggested next command
        command: the command line that the user typed, for the report

    Raises:
        ConfigError: the minutes are out of range, or the folder has another run in it
        CheckpointError: another process is training in the folder
        StopRequested: the user stopped the distillation; the same call resumes it
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}, expected a number above 0")
    microphone = Microphone() if uses_microphone else None
    with lock_folder(out):
        _print_title(console, "1. Distillation", "trains only the connector, on statements")
        ear = _distill(out, minutes, console)
        _print_title(
            console, "2. Evaluation", "on spoken questions from unseen voices; training has no questions"
        )
        suite = open_suite("pocket")
        ears = _evaluate_ears(ear, suite, out, console, command)
    _print_title(console, "3. A spoken question", "yours" if microphone else "a random one of the suite")
    question = microphone.record(console) if microphone else random.choice(suite.items)
    path = _ask_question(ears, question, out, console)
    files = shlex.join([str(out), str(path)])
    console.out(
        "\nAsk the same question with another instruction:\n"
        f'  {program} chat {files} --text "Answer in Spanish."',
        highlight=False,
    )


def _print_title(console: Console, title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]{text}[/dim]", highlight=False)


def build_demo_recipe(out: Path, minutes: float) -> Recipe:
    """Returns the recipe of the demo, without its number of steps, which is set after a step has been timed.

    Each clip has a single view: in a few minutes of training a clip is seen only a few times.
    """
    recipe = load_recipe(Path(resolve_model_path("pocket/recipe.toml")))
    n_clips = max(recipe.train.batch_size, round(minutes * CLIPS_PER_MINUTE))
    data = replace(recipe.data, n_clips=n_clips, n_augmented_views=1, feature_cache=str(out / "features"))
    return replace(recipe, out=str(out), data=data)


def _load_existing_recipe(out: Path, new_recipe: Recipe) -> Recipe | None:
    """Returns the recipe of the demo's run in `out`; None if there is no run.

    Raises:
        ConfigError: the run there is not the demo's
    """
    path = out / "recipe.toml"
    if not path.exists():
        return None
    recipe = load_recipe(path)
    data = replace(new_recipe.data, n_clips=recipe.data.n_clips)
    steps = replace(new_recipe.train, n_steps=recipe.train.n_steps)
    recipe = replace(recipe, out=str(out))
    if recipe != replace(new_recipe, data=data, train=steps):
        raise ConfigError(f"--out {out} holds a run with other settings; remove it, or give another folder")
    return recipe


def _distill(out: Path, minutes: float, console: Console) -> Ear:
    """Returns the ear of the run in `out`, after starting or resuming the run if it is not finished."""
    new_recipe = build_demo_recipe(out, minutes)
    existing = _load_existing_recipe(out, new_recipe)
    if existing is not None and (out / checkpoint.RUN_EAR).is_dir():
        console.print(
            f"{out} holds a finished ear ({existing.train.n_steps} steps); remove the folder to distill again"
        )
        return checkpoint.load(out)
    start_s = time.monotonic()
    progress = TrainingProgress(console)
    run = build_run(existing or new_recipe, progress)
    if existing is None:
        remaining_s = minutes * 60 - (time.monotonic() - start_s)
        run = with_n_steps(run, count_steps_within(run, remaining_s))
    ear = train_run(run, progress)
    console.print(f"Distilled in {(time.monotonic() - start_s) / 60:.1f} minutes", highlight=False)
    return ear


def _evaluate_ears(ear: Ear, suite: Suite, out: Path, console: Console, command: str) -> list[EvaluatedEar]:
    """Evaluates the new ear and the shipped ear on the same items, prints their tables and writes their reports."""
    n_steps = load_recipe(out / "recipe.toml").train.n_steps
    name = f"distilled on this computer, {n_steps} steps"
    report = _evaluate_ear(ear, suite, name, console, command)
    checkpoint.save(ear, out / checkpoint.RUN_EAR, card=build_model_card_table(report))
    ears = [EvaluatedEar(name=name, ear=ear, report=report)]
    if Path(resolve_model_path(SHIPPED_EAR)).is_dir():
        shipped = checkpoint.load(SHIPPED_EAR)
        name = "shipped with ossicle, trained longer and on more speech"
        report = _evaluate_ear(shipped, suite, name, console, command, reading=report)
        ears.append(EvaluatedEar(name=name, ear=shipped, report=report))
    else:
        console.print(f"(this installation has no {SHIPPED_EAR} to compare with)")
    for evaluated, path in zip(ears, (out / "report.json", out / "report-shipped.json"), strict=False):
        metrics = read_metrics(out) if evaluated.ear is ear else None
        written = write_report(evaluated.report, path, metrics=metrics)
        console.print(f"\nThe ear [bold]{evaluated.name}[/bold]:", highlight=False)
        print_table(evaluated.report, console)
        console.out(f"{written.html}  (with plots and audio)\n{written.json}", highlight=False)
    return ears


def _evaluate_ear(
    ear: Ear, suite: Suite, name: str, console: Console, command: str, reading: Report | None = None
) -> Report:
    base = ear.settings.base
    with ConsoleProgress(console) as progress:
        return evaluate(
            ear,
            suite,
            EvaluationSettings(batch_size=EVAL_BATCH_SIZE),
            progress=progress,
            about={"ear": name, "LLM": base.llm, "encoder": base.encoder},
            command=command,
            reuse_from=reading,
        )


def _ask_question(
    ears: Sequence[EvaluatedEar], question: Item | np.ndarray, out: Path, console: Console
) -> Path:
    """Prints each ear's answer to one spoken question, an item or samples. Returns the question's WAV file."""
    text_parts = []
    if isinstance(question, Item):
        console.out(f'spoken:   "{question.text}"', highlight=False)
        if question.instruction:
            console.out(f'written:  "{question.instruction}"', highlight=False)
            text_parts = [{"type": "text", "text": question.instruction}]
    samples = load_audio(question.audio if isinstance(question, Item) else question)
    path = out / "question.wav"
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_wav(samples))
    messages = [{"role": "user", "content": [{"type": "audio", "audio": samples}, *text_parts]}]
    for evaluated in ears:
        console.out(f"answer of the ear {evaluated.name}:  ", end="", highlight=False)
        for piece in evaluated.ear.stream(messages):
            console.out(piece, end="", style="bold", highlight=False)
        console.out("")
    return path
