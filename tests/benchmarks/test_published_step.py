"""The published step, written with transformers alone, has the loss and the gradients of our code."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from benchmarks import shapes
from benchmarks.shapes import Backbones, Shape
from benchmarks.training import synthetic_run, time_published_step
from ossicle.backbones.encoder import FRAMES_PER_POSITION
from ossicle.config import ConnectorSettings, ObjectiveSettings
from ossicle.training.batch import build_batch, build_microbatch
from ossicle.training.distillation import distillation_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbones(toy: Shape) -> Backbones:
    return shapes.Backbones.build(toy, CPU)


def test_the_loss_and_gradients_are_those_of_our_published_form(
    toy: Shape, backbones: Backbones, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published form is tested against the reference fixture elsewhere."""
    (clips,) = synthetic_run.draw_batches(toy, 2.0, 3, 1)
    step = synthetic_run.build_published_step(backbones, toy)
    ear = backbones.build_ear(ConnectorSettings(form="diva", n_queries=toy.n_decoder_positions))
    ours = {get_our_name(name): weight for name, weight in step.connector.named_parameters()}
    ear.connector.load_state_dict({name: ours[name] for name in ear.connector.state_dict()})
    mels = synthetic_run.pad_to_window(toy, clips)
    microbatch = build_microbatch([replace(clip, mel=mel) for clip, mel in zip(clips, mels, strict=True)])
    assert (
        microbatch.n_positions == [mels.shape[2] // FRAMES_PER_POSITION] * 3 == [toy.n_encoder_positions] * 3
    )
    published = ObjectiveSettings()
    loss = distillation_loss(ear, build_batch(ear, microbatch), published).total
    loss.backward()
    gradients = {
        name: weight.grad for name, weight in ear.connector.named_parameters() if weight.grad is not None
    }
    assert gradients.keys() == {name for name, weight in ours.items() if weight.requires_grad}
    monkeypatch.setattr(step.optimizer, "step", lambda: None)
    monkeypatch.setattr(step.optimizer, "zero_grad", lambda: None)
    assert_close(step.run_step(synthetic_run.build_published_batch(toy, clips)), loss.detach())
    scale = torch.nn.utils.get_total_norm(list(gradients.values()))
    for name, gradient in gradients.items():
        assert_close(ours[name].grad, gradient / max(1.0, float(scale)), msg=name)


def get_our_name(name: str) -> str:
    """Returns our connector's name of a weight of the published one."""
    return name.removeprefix("decoder.").replace("embed_positions.weight", "positions")


def test_the_loss_falls() -> None:
    result = time_published_step.main(["--shape", "toy", "--batch", "2", "--seconds", "1", "--rounds", "2"])
    assert result["loss"] == sorted(result["loss"], reverse=True)
