"""The loss with every objective and every form of connector."""

import pytest
from support.training_runs import (
    FORMS,
    assert_same_bits,
    change_settings,
    load_batch,
)
from torch.testing import assert_close

from ossicle.config import (
    ObjectiveSettings,
    Recipe,
)
from ossicle.errors import ConfigError
from ossicle.training import trainer
from ossicle.training.distillation import distillation_loss
from ossicle.training.setup import build_run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "objective",
    [
        {"hidden_positions": "last"},
        {"hidden_positions": "suffix", "kl_weight": 0.5, "kl_temperature": 2.0},
        {"hidden_positions": "all"},
        {"hidden_weight": 0.0},
        {"align_weight": 0.0, "end_weight": 0.0, "asr_weight": 0.0},
        {"token_ce_weight": 1.0},
        {"hidden_weight": 0.0, "align_weight": 0.0, "end_weight": 0.0, "asr_weight": 0.0, "kl_weight": 1.0},
    ],
    ids=["last", "suffix+kl", "all", "align only", "hidden only", "token_ce too", "kl only"],
)
def test_every_objective_gives_gradients_to_every_form(
    recipe: Recipe, runs: dict, form: str, objective: dict
) -> None:
    if objective.get("hidden_positions") == "all" and form in ("diva", "stack"):
        objective = {"hidden_positions": "suffix"}
    run = runs[form]
    settings = ObjectiveSettings(**objective)
    loss = distillation_loss(run.ear, load_batch(run, [0, 5, 9]), settings)
    terms = loss.terms
    expected = {name for name in ("align", "token_ce", "hidden", "kl") if getattr(settings, f"{name}_weight")}
    expected |= {"query": {"end"}, "autoregressive": {"end", "asr"}, "anchored": {"asr"}}.get(form, set())
    expected -= {name for name in ("end", "asr") if not getattr(settings, f"{name}_weight")}
    assert terms.keys() == expected
    run.ear.connector.zero_grad()
    loss.total.backward()
    gradients = [weight.grad for weight in run.ear.connector.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_a_transcript_longer_than_the_queries_is_aligned_at_its_end(recipe: Recipe) -> None:
    run = build_run(
        change_settings(
            recipe, connector={"form": "diva", "n_queries": 3}, objective={"hidden_positions": "last"}
        )
    )
    batch = load_batch(run, [4])
    assert batch.n_text.item() > 3
    (term,) = distillation_loss(run.ear, batch, ObjectiveSettings(hidden_weight=0.0)).terms.values()
    audio = run.ear.connector(batch.features).tokens[0]
    text = run.ear.embed(batch.text_ids)[0, -3:]
    assert_close(term, (audio - text).norm(dim=-1).mean())


def test_the_anchor_compares_noisy_sound_with_what_the_start_hears_in_clean_sound(
    recipe: Recipe,
) -> None:
    noise = {"noise_ratio": 1.0, "noise_snr_db": (0.0, 0.0)}
    objective = {"anchor_weight": 1.0, "hidden_positions": "suffix"}
    clean = build_run(change_settings(recipe, data={"feature_cache": None}, objective=objective))
    noisy = build_run(
        change_settings(recipe, data={"feature_cache": None}, augment=noise, objective=objective)
    )
    terms = {}
    for name, run in {"clean": clean, "noisy": noisy}.items():
        batch = load_batch(run, [0, 5, 9])
        loss = distillation_loss(run.ear, batch, run.recipe.objective, start=run.start)
        terms[name] = loss.terms["anchor"].item()
    assert clean.start is not None
    assert not any(weight.requires_grad for weight in clean.start.parameters())
    assert abs(terms["clean"]) < 1e-6
    assert terms["noisy"] > 1e-4


def test_a_resumed_run_is_held_to_the_same_start(recipe: Recipe) -> None:
    anchored = change_settings(recipe, data={"feature_cache": None}, objective={"anchor_weight": 1.0})
    run = build_run(anchored)
    assert run.start is not None
    before = {name: weight.clone() for name, weight in run.start.named_parameters()}
    trainer.train(change_settings(anchored, train={"n_steps": 2}))
    again = build_run(anchored)
    assert again.start is not None
    assert_same_bits(dict(again.start.named_parameters()), before)


@pytest.mark.parametrize("connector", [{"form": "query"}, {"init": "random"}])
def test_an_anchor_needs_words_before_training(recipe: Recipe, connector: dict) -> None:
    with pytest.raises(ConfigError, match=r"objective\.anchor_weight"):
        change_settings(recipe, connector=connector, objective={"anchor_weight": 1.0})
