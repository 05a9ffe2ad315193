"""The whole method in a few minutes on two cores: distil the embedded LLM, evaluate it, ask it aloud."""

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
from ossicle.atomic_io import sole_writer, written_whole
from ossicle.audio.microphone import Microphone
from ossicle.audio.waveform import load_audio
from ossicle.backbones.pretrained import locate
from ossicle.config import Recipe, load_recipe
from ossicle.console_progress import ConsoleProgress
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.evaluation import (
    Evaluation,
    Item,
    Report,
    Suite,
    evaluate,
    model_card_table,
    open_suite,
    print_table,
    write_report,
)
from ossicle.html_page import wav
from ossicle.training.progress import Progress
from ossicle.training.run import prepare, with_steps
from ossicle.training.run_log import read_metrics
from ossicle.training.trainer import continue_run, steps_within

SHIPPED = "pocket/ear"
CLIPS_PER_MINUTE = 2_500
"""Clips to learn from, by the minutes there are: a short run would otherwise spend them on encoding clips."""
EVALUATED_AT_ONCE = 64
"""Items of the suite: they are short, and so are the answers."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An ear with its numbers, and the words that tell it from the other one."""

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
    through_microphone: bool = False,
) -> None:
    """Distils, evaluates, writes both reports and answers one spoken question.

    Args:
        program: how a person calls ossicle here, for what they may try next
        command: what they typed, for the report

    Raises:
        ConfigError: no minutes, or a folder with another run in it
        CheckpointError: a folder that another process trains in
        Stopped: stopped by hand while distilling; the same call goes on
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}, expected a number above 0")
    microphone = Microphone() if through_microphone else None
    with sole_writer(out):
        _title(console, "1. Distilling", "only the connector learns, from statements")
        ear = _distilled(out, minutes, console)
        _title(console, "2. Evaluating", "questions, which it has never heard, by voices it has never heard")
        suite = open_suite("pocket")
        contenders = _evaluated(ear, suite, out, console, command)
    _title(console, "3. Asking aloud", "your question" if microphone else "one of the questions, at random")
    question = microphone.listen(console) if microphone else random.choice(suite.items)
    path = _ask_aloud(contenders, question, out, console)
    files = shlex.join([str(out), str(path)])
    console.out(f'\nAsk it yourself:\n  {program} chat {files} --text "Answer in Spanish."', highlight=False)


def _title(console: Console, title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]{text}[/dim]", highlight=False)


def pocket_recipe(out: Path, minutes: float) -> Recipe:
    """What the demo distils, but for the number of steps: that is known when a step has been timed.

    Each clip is heard in one way only: in so few minutes it comes up a few times.
    """
    recipe = load_recipe(Path(locate("pocket/recipe.toml")))
    n_clips = max(recipe.train.batch_size, round(minutes * CLIPS_PER_MINUTE))
    data = replace(recipe.data, n_clips=n_clips, n_augmented_views=1, feature_cache=str(out / "features"))
    return replace(recipe, out=str(out), data=data)


def _begun_recipe(out: Path, fresh: Recipe) -> Recipe | None:
    """The recipe of the demo's run that lies in `out` already.

    Raises:
        ConfigError: the run there is none of the demo's
    """
    path = out / "recipe.toml"
    if not path.exists():
        return None
    begun = load_recipe(path)
    data = replace(fresh.data, n_clips=begun.data.n_clips)
    steps = replace(fresh.train, n_steps=begun.train.n_steps)
    begun = replace(begun, out=str(out))
    if begun != replace(fresh, data=data, train=steps):
        raise ConfigError(f"--out {out} holds a run of other settings; remove it, or give another folder")
    return begun


def _distilled(out: Path, minutes: float, console: Console) -> Ear:
    """The ear of the run in `out`, which is begun, continued or already finished."""
    fresh = pocket_recipe(out, minutes)
    begun = _begun_recipe(out, fresh)
    if begun is not None and (out / checkpoint.RUN_EAR).is_dir():
        console.print(f"{out} holds a finished ear ({begun.train.n_steps} steps); remove it to distil anew")
        return checkpoint.load(out)
    started = time.monotonic()
    progress = Progress(console)
    run = prepare(begun or fresh, progress)
    if begun is None:
        left_s = minutes * 60 - (time.monotonic() - started)
        run = with_steps(run, steps_within(run, left_s))
    ear = continue_run(run, progress)
    console.print(f"distilled in {(time.monotonic() - started) / 60:.1f} minutes", highlight=False)
    return ear


def _evaluated(ear: Ear, suite: Suite, out: Path, console: Console, command: str) -> list[Contender]:
    """The ear just distilled and the shipped one, on the same items; their reports are written."""
    n_steps = load_recipe(out / "recipe.toml").train.n_steps
    own = f"distilled on this computer, {n_steps} steps"
    report = _report(ear, suite, own, console, command)
    checkpoint.save(ear, out / checkpoint.RUN_EAR, card=model_card_table(report))
    contenders = [Contender(name=own, ear=ear, report=report)]
    if Path(locate(SHIPPED)).is_dir():
        shipped = checkpoint.load(SHIPPED)
        name = "shipped with ossicle, trained longer and on more speech"
        report = _report(shipped, suite, name, console, command, reading=report)
        contenders.append(Contender(name=name, ear=shipped, report=report))
    else:
        console.print(f"(no {SHIPPED} comes with this ossicle: the ear just distilled stands alone)")
    for contender, place in zip(contenders, (out / "report.json", out / "report-shipped.json"), strict=False):
        losses = read_metrics(out) if contender.ear is ear else None
        written = write_report(contender.report, place, losses=losses)
        console.print(f"\nThe ear [bold]{contender.name}[/bold]:", highlight=False)
        print_table(contender.report, console)
        console.out(f"{written.html}  (to look at and listen to)\n{written.json}", highlight=False)
    return contenders


def _report(
    ear: Ear, suite: Suite, name: str, console: Console, command: str, reading: Report | None = None
) -> Report:
    base = ear.settings.base
    with ConsoleProgress(console) as progress:
        return evaluate(
            ear,
            suite,
            Evaluation(batch_size=EVALUATED_AT_ONCE),
            progress=progress,
            about={"ear": name, "LLM": base.llm, "encoder": base.encoder},
            command=command,
            reading=reading,
        )


def _ask_aloud(
    contenders: Sequence[Contender], question: Item | np.ndarray, out: Path, console: Console
) -> Path:
    """One spoken question, an item's or samples, answered by each ear while one looks on; the file it is kept in."""
    beside = []
    if isinstance(question, Item):
        console.out(f'said:  "{question.text}"', highlight=False)
        if question.instruction:
            console.out(f'beside it, in writing:  "{question.instruction}"', highlight=False)
            beside = [{"type": "text", "text": question.instruction}]
    samples = load_audio(question.audio if isinstance(question, Item) else question)
    path = out / "question.wav"
    with written_whole(path) as temporary:
        temporary.write_bytes(wav(samples))
    messages = [{"role": "user", "content": [{"type": "audio", "audio": samples}, *beside]}]
    for contender in contenders:
        console.out(f"the ear {contender.name}:  ", end="", highlight=False)
        for piece in contender.ear.stream(messages):
            console.out(piece, end="", style="bold", highlight=False)
        console.out("")
    return path
