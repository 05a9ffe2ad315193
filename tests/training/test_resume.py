"""The saved state of a run: damaged, incomplete, or of another recipe, models or speech."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training_runs import (
    SignalAfterStep,
    change_settings,
    load_saved_state,
)

from ossicle import run_checkpoint
from ossicle.config import (
    Recipe,
)
from ossicle.errors import CheckpointError
from ossicle.run_checkpoint import read_unfinished_run
from ossicle.training import resume, trainer
from ossicle.training.resume import TrainerState, save_state, write_origin
from ossicle.training.setup import build_run
from ossicle.training.trainer import StopRequested, train_run


@pytest.mark.parametrize("name", ["encoder", "speech", "llm config", "noise"])
def test_a_run_resumes_only_with_the_models_and_speech_it_began_with(
    recipe: Recipe, speech: Path, tmp_path: Path, name: str
) -> None:
    noise = tmp_path / "noise" / "hum.wav"
    noise.parent.mkdir()
    shutil.copy(speech.parent / "0.wav", noise)
    recipe = change_settings(recipe, augment={"noise": str(noise.parent), "noise_ratio": 0.5})
    run = build_run(recipe)
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(7, 28), recipe)
    write_origin(run.folder, run.fingerprints)
    if name == "encoder":
        run = replace(run, backbone_fingerprints={**run.backbone_fingerprints, "encoder": "0123456789abcdef"})
    elif name == "llm config":
        run.ear.llm.config.rms_norm_eps *= 10
    elif name == "noise":
        shutil.copy(speech.parent / "1.wav", noise)
        run = build_run(recipe)
    else:
        vars(run.dataset.speech)["fingerprint"] = "of other speech"
    with pytest.raises(CheckpointError, match=f"began with another {name}: its fingerprint was"):
        train_run(run)
    (run.folder / resume.ORIGIN_FILE).write_text("[")
    with pytest.raises(CheckpointError, match=r"origin\.json is damaged"):
        train_run(run)


def test_a_run_resumes_only_with_the_ear_that_it_started_from(recipe: Recipe, tmp_path: Path) -> None:
    starts = [replace(recipe, out=str(tmp_path / f"start-{seed}")) for seed in (1, 2)]
    for seed, start in enumerate(starts):
        trainer.train(change_settings(start, train={"n_steps": 1, "seed": seed}))
    again = change_settings(recipe, train={"n_steps": 2, "start": starts[0].out, "start_ratio": 0.5})
    with pytest.raises(StopRequested):
        trainer.train(again, SignalAfterStep(1))
    ear = Path(starts[0].out) / "ear"
    shutil.move(ear, tmp_path / "kept")
    shutil.copytree(Path(starts[1].out) / "ear", ear)
    with pytest.raises(CheckpointError, match="began with another start: its fingerprint was"):
        trainer.train(again)
    assert read_unfinished_run(Path(recipe.out)).fingerprints.keys().isdisjoint({"speech", "start"})
    shutil.rmtree(ear)
    shutil.move(tmp_path / "kept", ear)
    assert trainer.train(again) is not None


def test_a_run_resumes_when_its_speech_has_moved(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    short = change_settings(recipe, train={"n_steps": 2}, data={"feature_cache": None})
    with pytest.raises(StopRequested):
        trainer.train(short, SignalAfterStep(1))
    shutil.copytree(speech.parent, tmp_path / "moved")
    moved = change_settings(short, data={"source": (str(tmp_path / "moved" / speech.name),)})
    assert trainer.train(moved) is not None
    weighted = change_settings(short, data={"source": (f"{speech}?weight=2",)})
    with pytest.raises(
        CheckpointError, match=r"data\.source was \['speech.jsonl'\] and is \['speech.jsonl\?weight=2'\]"
    ):
        trainer.train(weighted)


def test_a_run_of_another_recipe_is_refused_and_the_setting_is_named(recipe: Recipe) -> None:
    short = change_settings(recipe, train={"n_steps": 1})
    trainer.train(short)
    for other, message in (
        (change_settings(short, train={"peak_lr": 1e-3}), r"train\.peak_lr was 0\.002 and is 0\.001"),
        (
            change_settings(short, train={"n_steps": 2}, data={"n_clips": 3}),
            r"data\.n_clips was None and is 3",
        ),
    ):
        with pytest.raises(CheckpointError, match=f"{recipe.out} holds a run of another recipe: {message}"):
            trainer.train(other)
    trainer.train(change_settings(short, train={"microbatch_gb": 1.0, "save_every": 1}))


@pytest.mark.parametrize("damage", ["cut", "flipped header", "no weights", "no progress", "text"])
def test_a_damaged_state_is_refused(recipe: Recipe, damage: str) -> None:
    short = change_settings(recipe, train={"n_steps": 1})
    trainer.train(short)
    folder = Path(recipe.out) / resume.STATES_FOLDER / "step-00000001"
    (weights_file,) = folder.glob("*.safetensors")
    content = weights_file.read_bytes()
    if damage == "cut":
        weights_file.write_bytes(content[:-100])
    elif damage == "flipped header":
        weights_file.write_bytes(content[:8] + b"?" + content[9:])
    elif damage == "no weights":
        weights_file.unlink()
    elif damage == "no progress":
        (folder / "progress.json").unlink()
    else:
        (folder / "progress.json").write_text("nothing")
    with pytest.raises(
        CheckpointError, match=r"step-00000001 is damaged .*; remove it to begin the run again"
    ):
        trainer.train(short)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), PermissionError(errno.EACCES, "Permission denied")]
)
def test_a_state_that_cannot_be_read_now_is_not_called_damaged(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    short = change_settings(recipe, train={"n_steps": 1})
    trainer.train(short)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(resume.dcp, "load", fail)
        with pytest.raises(CheckpointError, match=r"cannot be read now .*; nothing is lost: run the same"):
            trainer.train(short)
    assert trainer.train(short) is not None


def test_an_unfinished_run_that_cannot_be_read_now_is_not_called_damaged(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run(recipe)
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(1, 4), recipe)

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(run_checkpoint, "_read_state", fail)
    with pytest.raises(CheckpointError, match=r"cannot be read now \(Permission denied\); nothing is lost"):
        read_unfinished_run(run.folder)


def test_optimizer_tensors_are_on_the_device_of_their_weight() -> None:
    """Fused AdamW on a GPU needs its step there, too."""
    moments = resume._allocate_moments(torch.zeros(3, device="meta"), ("step", "exp_avg", "exp_avg_sq"))
    assert {name: (value.device.type, len(value)) for name, value in moments.items()} == {
        "step": ("meta", 1),
        "exp_avg": ("meta", 3),
        "exp_avg_sq": ("meta", 3),
    }


def test_a_full_disk_leaves_the_earlier_state_intact(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_full_disk(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder, run = Path(recipe.out), build_run(recipe)
    save_state(folder, run.ear.connector, run.optimizer, TrainerState(1, 4), recipe)
    monkeypatch.setattr(resume, "_write_tensors", raise_full_disk)
    with pytest.raises(CheckpointError, match=r"step-00000002 cannot be written: No space left on device"):
        save_state(folder, run.ear.connector, run.optimizer, TrainerState(2, 8), recipe)
    assert load_saved_state(run) == TrainerState(1, 4)
    assert [path.name for path in (folder / resume.STATES_FOLDER).iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("when", ["while writing", "before renaming", "before removing"])
def test_an_incomplete_state_of_a_killed_process_is_ignored(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run = build_run(recipe)
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(1, 4), recipe)
    states = run.folder / resume.STATES_FOLDER
    if when == "before removing":
        shutil.copytree(states / "step-00000001", states / "step-00000002")
        progress = (states / "step-00000002" / "progress.json").read_text()
        (states / "step-00000002" / "progress.json").write_text(
            progress.replace('"step": 1', '"step": 2').replace('"n_samples": 4', '"n_samples": 8')
        )
    else:
        incomplete = states / ".step-00000002"
        shutil.copytree(states / "step-00000001", incomplete)
        if when == "while writing":
            (incomplete / "progress.json").unlink()
    assert load_saved_state(run) == (TrainerState(2, 8) if when == "before removing" else TrainerState(1, 4))
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(2, 8), recipe)
    assert [path.name for path in states.iterdir()] == ["step-00000002"]
