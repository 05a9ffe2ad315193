"""One step: warm-up, microbatches and dropout."""

import pytest
import torch
from support.training_runs import (
    FORMS,
    ONE_CLIP_GB,
    change_settings,
    compute_step_loss,
    load_batch,
    run_train_step,
)
from torch.testing import assert_close

from ossicle.config import (
    Recipe,
)
from ossicle.training.setup import build_run


def test_the_alignment_only_warm_up_leaves_out_the_llm(recipe: Recipe) -> None:
    run = build_run(change_settings(recipe, objective={"align_only_ratio": 0.25}, train={"n_steps": 12}))
    terms = [set(run_train_step(run, step).terms) for step in range(4)]
    warm_up = {"loss", "align", "end", "asr", "grad_norm"}
    assert terms == [warm_up] * 3 + [warm_up | {"hidden"}]


@pytest.mark.parametrize("form", FORMS)
def test_microbatches_give_the_gradients_of_the_whole_batch(recipe: Recipe, form: str) -> None:
    objective = {
        "hidden_positions": "suffix",
        "kl_weight": 0.5,
        "token_ce_weight": 1.0,
        "align_only_ratio": 0.0,
    }
    results = {}
    for microbatch_gb in (None, ONE_CLIP_GB):
        divided = change_settings(
            recipe,
            connector={"form": form, "n_queries": 40 if form in FORMS[:3] else 6, "n_stacked": 8},
            objective=objective,
            train={"batch_size": 12, "microbatch_gb": microbatch_gb, "clip_norm": 1e9},
        )
        run = build_run(divided)
        run.optimizer.zero_grad = lambda: None  # ty: ignore[invalid-assignment]
        terms = run_train_step(run, 0).terms
        results[microbatch_gb] = (
            terms,
            {name: weight.grad for name, weight in run.ear.connector.named_parameters()},
        )
    assert_close(results[ONE_CLIP_GB], results[None])


def test_dropout_is_active_only_in_training(recipe: Recipe) -> None:
    run = build_run(change_settings(recipe, connector={"dropout": 0.5}))
    features = load_batch(run, [3, 8]).features
    run_train_step(run, 0)
    first, second = run.ear.connector(features), run.ear.connector(features)
    assert torch.equal(first.tokens, second.tokens)
    without = build_run(recipe)
    assert compute_step_loss(run, 0) != compute_step_loss(without, 0)
