"""The whole method in a few minutes on two cores: distill an ear, evaluate it before and after, ask it something."""

import math
import random
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ossicle import checkpoint
from ossicle.atomic_io import atomic_write, lock_folder, write_text
from ossicle.audio.microphone import Microphone
from ossicle.audio.waveform import load_audio
from ossicle.config import Recipe, load_recipe
from ossicle.console_progress import ConsoleProgress
from ossicle.data.dataset import open_speech
from ossicle.demo_task import DemoTask
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.evaluation import (
    EvaluationSettings,
    Item,
    Report,
    build_model_card_table,
    evaluate,
    write_report,
)
from ossicle.evaluation.gains import compute_gains
from ossicle.evaluation.report.comparison_page import render_comparison
from ossicle.evaluation.report.formatting import format_number, format_points, format_points_interval
from ossicle.evaluation.report.write import format_cell
from ossicle.html_page import encode_wav
from ossicle.training.resume import check_origin
from ossicle.training.run_log import TrainingProgress, read_metrics
from ossicle.training.trainer import train


@dataclass(frozen=True, kw_only=True)
class EvaluatedEar:
    """An ear with its report, and the text that distinguishes it from the other ear."""

    name: str
    ear: Ear
    report: Report


def run_demo(
    build_task: Callable[[], DemoTask],
    console: Console,
    *,
    out: Path,
    program: str,
    command: str,
    uses_microphone: bool = False,
) -> None:
    """Distills an ear, evaluates it before and after, writes the reports and answers one spoken question.

    Args:
        build_task: is called before anything is written
        program: how to call ossicle on this computer, for the suggested next command
        command: the command line that the user typed, for the report

    Raises:
        ConfigError: the folder has another run in it
        CheckpointError: another process is training in the folder
        StopRequested: the user stopped the distillation; the same call resumes it
    """
    microphone = Microphone() if uses_microphone else None
    task = build_task()
    _print_title(
        console, "1. Distillation", "trains only the connector, on transcribed speech, most of it in noise"
    )
    ear = _distill(task, out, console)
    _print_title(console, "2. Evaluation, before and after", task.measure)
    with lock_folder(out):
        ears = _evaluate_ears(task, ear, out, console, command)
    _print_title(
        console, "3. A spoken question", "yours" if microphone else "a random item of the evaluation"
    )
    question = microphone.record(console) if microphone else random.choice(task.suite.items)
    path = _ask_question(ears, question, out, console)
    files = shlex.join([str(out), str(path)])
    console.out(
        "\nAsk the same question with another instruction:\n"
        f'  {program} chat {files} --text "Answer in Spanish."',
        highlight=False,
    )


def check_minutes(minutes: float) -> float:
    """Returns the minutes.

    Raises:
        ConfigError: they are out of range
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}, expected a number above 0")
    return minutes


def _print_title(console: Console, title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]{text}[/dim]", highlight=False)


def _load_existing_recipe(out: Path, task: DemoTask) -> Recipe | None:
    """Returns the recipe of the demo's run in `out`, which may have other minutes; None if there is no run.

    Raises:
        ConfigError: the run there is not the demo's
    """
    path = out / "recipe.toml"
    if not path.exists():
        return None
    recipe = replace(load_recipe(path), out=str(out))
    data = task.recipe.data if task.holds_out_rows else replace(task.recipe.data, n_clips=recipe.data.n_clips)
    minutes = replace(task.recipe.train, minutes=recipe.train.minutes)
    if recipe != replace(task.recipe, data=data, train=minutes):
        problem = (
            "other settings or another number of recordings" if task.holds_out_rows else "other settings"
        )
        raise ConfigError(f"--out {out} holds a run with {problem}; remove it, or give another folder")
    return recipe


def _distill(task: DemoTask, out: Path, console: Console) -> Ear:
    """Returns the ear of the run in `out`, after starting or resuming the run if it is not finished."""
    existing = _load_existing_recipe(out, task)
    if existing is not None and (out / checkpoint.RUN_EAR).is_dir():
        console.print(
            f"{out} holds a finished ear ({_describe_training(out)}); remove the folder to distill again",
            highlight=False,
        )
        if task.holds_out_rows:  # else it might be evaluated on rows that it was trained on
            check_origin(
                out, {"speech": open_speech(existing.data.source, existing.data.n_clips).fingerprint}
            )
        return checkpoint.load(out)
    start_s = time.monotonic()
    ear = train(existing or task.recipe, TrainingProgress(console))
    minutes = (time.monotonic() - start_s) / 60
    console.print(f"{_describe_training(out)}; {minutes:.1f} minutes with all preparations", highlight=False)
    return ear


def _describe_training(out: Path) -> str:
    """Returns how many steps the run in `out` took in how many minutes."""
    n_steps = int(read_metrics(out)[-1]["step"])
    return f"{n_steps} steps in {load_recipe(out / 'recipe.toml').train.minutes:g} minutes"


def _evaluate_ears(
    task: DemoTask, ear: Ear, out: Path, console: Console, command: str
) -> tuple[EvaluatedEar, EvaluatedEar]:
    """Evaluates the untrained and the new ear on the same items, prints their numbers and writes their reports."""
    torch.manual_seed(task.recipe.train.seed)
    untrained = Ear.new(ear.settings)
    before_name, after_name = "before training", f"after {_describe_training(out)}"
    before = _evaluate_ear(task, untrained, before_name, console, command)
    after = _evaluate_ear(task, ear, after_name, console, command, reuse_from=before)
    checkpoint.save(ear, out / checkpoint.RUN_EAR, card=build_model_card_table(after))
    before_files = write_report(before, out / "report-before.json")
    after_files = write_report(after, out / "report.json", metrics=read_metrics(out))
    page = out / "compare.html"
    write_text(page, render_comparison([before_files.json, after_files.json], [before, after]))
    _print_gains(before, after, console)
    console.out(
        f"{page}  (before and after, with plots and audio)\n{after_files.html}  (every answer, and the losses)\n"
        f"{after_files.json}",
        highlight=False,
    )
    return (
        EvaluatedEar(name=before_name, ear=untrained, report=before),
        EvaluatedEar(name=after_name, ear=ear, report=after),
    )


def _evaluate_ear(
    task: DemoTask, ear: Ear, name: str, console: Console, command: str, reuse_from: Report | None = None
) -> Report:
    base = ear.settings.base
    with ConsoleProgress(console) as progress:
        return evaluate(
            task.get_model(ear),
            task.suite,
            EvaluationSettings(batch_size=task.batch_size, corruptions=task.corruptions),
            progress=progress,
            about={"ear": name, "LLM": base.llm, "encoder": base.encoder},
            command=command,
            reuse_from=reuse_from,
        )


def _print_gains(before: Report, after: Report, console: Console) -> None:
    """Prints the numbers before and after, clean and in noise, and the paired differences."""
    gains = compute_gains(before, after)
    metric = after.overall.metric
    caption = "95 % intervals; gain: after - before, in points, in pairs."
    if not metric.is_error:
        ceiling = format_number(after.overall.text_ceiling.value, metric)
        caption += f" Text ceiling, the LLM reads what was said: {ceiling}."
    table = Table(
        title=f"{metric.title}: {after.overall.n} spoken items", caption=caption, caption_justify="left"
    )
    table.add_column("", no_wrap=True)
    for name in ("cascade", "ear before", "ear after", "gain"):
        table.add_column(name, justify="right", style="bold" if name == "ear after" else "", no_wrap=True)
    for gain in gains:
        estimates = (gain.cascade, gain.before, gain.after)
        value = format_points(gain.difference.value, metric)
        interval = format_points_interval(gain.difference.ci95, metric)
        cells = [format_cell(estimate, metric) for estimate in estimates]
        table.add_row(gain.name, *cells, f"{value}\n[dim]{interval}[/dim]")
    console.print(table)
    if not any(gain.is_clear for gain in gains):
        console.print(
            "No gain is clear of chance: this computer took few steps; give it more time with --minutes, and another"
            " --out",
            highlight=False,
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
