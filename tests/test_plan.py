"""What a run is said to cost, against torch's own counter on real steps of tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_ear
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from earshot.alignment import Transcripts
from earshot.config import BaseSettings, ObjectiveSettings, Recipe
from earshot.encoder import encode, n_frames_for
from earshot.model import Ear
from earshot.objectives import alignment_distance, end_loss, forward_kl, naming_loss
from earshot.plan import cost_model

FORMS = ("left", "anchored", "right", "stack")
RECIPES = Path(__file__).parents[1] / "recipes"


def small_recipe(ear: Ear, objective: ObjectiveSettings) -> Recipe:
    return Recipe(
        out="runs/none", base=ear.settings.base, connector=ear.settings.connector, objective=objective
    )


def counted(
    ear: Ear, objective: ObjectiveSettings, n_tokens: int, length_s: float
) -> tuple[dict[str, int], int]:
    """FLOPs of one clip's part in a step, by torch's counter, and its encoder positions.

    With attention as plain matrix products, which the counter knows, and which compute nothing twice.
    """
    ids = torch.arange(n_tokens)[None] + 5
    n_text = torch.tensor([n_tokens])
    candidates = ear.embed(torch.arange(ids.numel() + 5))
    transcripts = Transcripts(n_tokens=n_text, wanted=ids - ids.min(), candidates=candidates[:n_tokens])
    counts: dict[str, int] = {}

    def part(name: str, run: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = run()
        counts[name] = counts.get(name, 0) + counter.get_total_flops()
        return result

    n_frames = 600 if ear.settings.base.encoder_window == "full" else n_frames_for(int(length_s * 16_000))
    mel = torch.randn(1, ear.whisper.config.num_mel_bins, min(n_frames, 600))
    encoder = ear.whisper.model.model.encoder
    with torch.no_grad():
        features = part("encoder", lambda: encode(encoder, mel, torch.tensor([mel.shape[2]])))
    audio = part("connector forward", lambda: ear.connector(features, transcripts))
    text = ear.embed(ids)
    aligned = ear.connector.aligned
    loss = alignment_distance(audio.tokens, text, audio.n_tokens, n_text, aligned)
    if objective.name_weight:
        loss = loss + part(
            "connector forward", lambda: naming_loss(audio.tokens, transcripts, audio.n_tokens, aligned)
        )
    if audio.end_logits is not None and objective.end_weight:
        loss = loss + end_loss(audio.end_logits, n_text)
    if audio.spotting is not None and objective.spot_weight:
        loss = loss - audio.spotting.sum()
    middle = audio.tokens.detach().requires_grad_()
    student = part("student forward", lambda: ear.readings(middle, audio.n_tokens))
    with torch.no_grad():
        teacher = part("teacher", lambda: ear.readings(text, n_text))
    heard = student.states[:, -1]
    distance = (heard - teacher.states[:, -1]).square().sum()
    if objective.kl_weight:
        logits = part("student forward", lambda: ear.logits(heard))
        with torch.no_grad():
            target = part("teacher", lambda: ear.logits(teacher.states[:, -1]))
        distance = distance + forward_kl(logits, target)
    part("student backward", distance.backward)
    part("connector backward", (loss + audio.tokens.sum()).backward)
    return counts, int(features.mask.sum())


@pytest.mark.parametrize("window", ["sound", "full"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_clip_costs_is_what_torch_counts(form: str, window: Any) -> None:
    base = BaseSettings(encoder="tiny/whisper", llm="tiny/llm", encoder_window=window)
    ear = tiny_ear(form, base=base, n_queries=24, n_stacked=7)
    ear.connector.train()
    objective = ObjectiveSettings(name_weight=0.5, kl_weight=0.5)
    costs = cost_model(small_recipe(ear, objective), ear)
    for n_tokens, length_s in ((1, 0.2), (4, 1.3), (19, 4.1), (23, 6.0)):
        expected, n_positions = counted(ear, objective, n_tokens, length_s)
        found = costs.parts(n_positions, n_tokens, n_candidates=n_tokens)
        assert {name: float(flops) for name, flops in found.items()} == pytest.approx(expected, rel=1e-9)
