"""The weights that decay."""

import pytest
import torch
from support.tiny_models import tiny_ear, tiny_llama
from support.training_runs import (
    FORMS,
)

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.config import (
    TrainSettings,
)
from ossicle.training.optimizer import build_optimizer, set_learning_rate
from ossicle.training.run import Run


@pytest.mark.parametrize("form", FORMS)
def test_only_matrices_of_layers_have_weight_decay(runs: dict[str, Run], form: str) -> None:
    connector = runs[form].ear.connector
    optimizer = build_optimizer(connector, TrainSettings(weight_decay=0.3))
    decay = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(connector.parameters()))
    for name, weight in connector.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert decay[id(weight)] == (0.3 if is_matrix else 0.0), name


def test_residuals_are_learned_at_the_scale_of_the_embeddings_that_they_are_added_to() -> None:
    """One step of Adam changes what the decoder and the LLM are given by the same part, however small embeddings are."""
    llm = tiny_llama()
    with torch.no_grad():
        get_input_embeddings(llm).weight.mul_(0.01)
    ear = tiny_ear("autoregressive", llm=llm)
    settings = TrainSettings(peak_lr=1e-3, n_steps=1, warmup_ratio=1.0, weight_decay=0.0)
    optimizer = build_optimizer(ear.connector, settings)
    set_learning_rate(optimizer, settings.peak_lr)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    head = ear.connector.vocabulary_head
    assert head is not None
    expected = {
        "projection.2": float(head.llm_embeddings.std()),
        "feedback.token.2": float(head.decoder_embeddings.std()),
    }
    for name, weight in ear.connector.named_parameters():
        scale = expected.get(name.rpartition(".")[0], 1.0)
        assert rates[id(weight)] == pytest.approx(1e-3 * scale), name
    assert expected["projection.2"] < 0.01 * expected["feedback.token.2"]
