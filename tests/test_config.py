"""Recipes: TOML in, TOML out, and every way in which one can be wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.config import (
    AugmentSettings,
    BaseSettings,
    ConnectorSettings,
    DataSettings,
    ObjectiveSettings,
    PromptSettings,
    Recipe,
    TrainSettings,
    load_recipe,
)
from ossicle.errors import ConfigError
from ossicle.settings_io import from_table, to_table, to_toml

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
POSITIVE = st.floats(min_value=1e-12, max_value=1e6)
SHARES = st.floats(min_value=0, max_value=1)
COUNTS = st.integers(min_value=1, max_value=10**9)
RECIPES = st.builds(
    Recipe,
    out=NAMES,
    base=st.builds(
        BaseSettings,
        encoder=NAMES,
        llm_revision=st.none() | NAMES,
        encoder_window=st.sampled_from(["sound", "full"]),
    ),
    prompt=st.builds(PromptSettings, system=st.none() | st.just("") | NAMES, date=st.dates().map(str)),
    connector=st.builds(
        ConnectorSettings,
        form=st.sampled_from(["left", "autoregressive", "anchored"]),
        init=st.sampled_from(["whisper", "random"]),
        n_queries=COUNTS,
        slots_per_second=POSITIVE,
    ),
    objective=st.builds(
        ObjectiveSettings,
        hidden_weight=SHARES,
        align_weight=POSITIVE,
        hidden_positions=st.sampled_from(["last", "suffix", "all"]),
        align_only_ratio=SHARES,
    ),
    data=st.builds(
        DataSettings,
        source=st.lists(NAMES, min_size=1).map(tuple),
        n_clips=st.none() | COUNTS,
        n_augmented_views=COUNTS,
        max_invalid_ratio=SHARES,
        concat_ratio=SHARES,
        teacher_cache=st.none() | NAMES,
    ),
    augment=st.builds(
        AugmentSettings, noise_ratio=SHARES, noise=st.none() | NAMES, spec_augment=st.booleans()
    ),
    train=st.builds(
        TrainSettings,
        n_steps=COUNTS,
        batch_size=COUNTS,
        peak_lr=POSITIVE,
        betas=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
        seed=st.integers(0, 2**63 - 1),
    ),
)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, for items of a tuple
@given(recipe=RECIPES)
def test_toml_out_and_in_is_the_same_recipe(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert from_table(Recipe, to_table(recipe)) == recipe


def test_what_is_not_said_keeps_its_default() -> None:
    assert from_table(Recipe, {"out": "runs/mine"}) == Recipe(out="runs/mine")


def test_a_whole_number_is_a_number() -> None:
    settings = from_table(TrainSettings, {"peak_lr": 1, "betas": [0, 0.5]})
    assert settings == TrainSettings(peak_lr=1.0, betas=(0.0, 0.5))
    assert isinstance(settings.peak_lr, float)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("", "out is missing; a text in quotes"),
        ('out = ""', "out is '', expected a folder"),
        ("out = 3", "out is 3, expected a text in quotes"),
        ("steps = 3", "unknown key steps; expected one of out, base"),
        ("[train]\nsteps = 3", "unknown key train.steps; expected one of n_steps"),
        ("train = 3", "train is 3, expected a table"),
        ("[train]\nn_steps = 1.5", "train.n_steps is 1.5, expected a whole number"),
        ("[train]\nn_steps = true", "train.n_steps is True, expected a whole number"),
        ("[train]\nn_steps = 0", "train.n_steps is 0, expected at least 1"),
        ('[train]\npeak_lr = "fast"', "train.peak_lr is 'fast', expected a number"),
        ("[train]\npeak_lr = -1", "train.peak_lr is -1.0, expected a positive number"),
        ("[train]\npeak_lr = nan", "train.peak_lr is nan, expected a positive number"),
        ("[train]\npeak_lr = inf", "train.peak_lr is inf, expected a positive number"),
        (f"[train]\npeak_lr = {10**400}", "train.peak_lr is 1000"),
        ("[train]\nwarmup_ratio = 2", "train.warmup_ratio is 2.0, expected a share between 0 and 1"),
        ("[train]\nbetas = [0.9]", "train.betas is [0.9], expected a list of 2 numbers"),
        ('[train]\nbetas = [0.9, "b"]', "train.betas[1] is 'b', expected a number"),
        ("[train]\nbetas = [0.9, 1.0]", "train.betas is (0.9, 1.0), expected two numbers"),
        ("[train]\nseed = -1", "train.seed is -1, expected a whole number from 0"),
        (
            "[train]\nmicrobatch_gb = 0.0",
            "train.microbatch_gb is 0.0, expected a positive number",
        ),
        ("[data]\nn_clips = 0", "data.n_clips is 0, expected at least 1"),
        ('[data]\nn_clips = "all"', "data.n_clips is 'all', expected a whole number"),
        ("[connector]\ndropout = 1.0", "connector.dropout is 1.0, expected a share from 0 to below 1"),
        ("[data]\nn_augmented_views = 0", "data.n_augmented_views is 0, expected at least 1"),
        ('[data]\nsource = ""', "data.source is ('',), expected a .parquet, .jsonl or .tar file"),
        ("[data]\nsource = []", "data.source is (), expected a .parquet"),
        ("[data]\nsource = 3", "data.source is 3, expected a text in quotes, or a list of them"),
        ('[data]\nsource = ["a", 3]', "data.source[1] is 3, expected a text in quotes"),
        ("[data]\nmax_invalid_ratio = 2", "data.max_invalid_ratio is 2.0, expected a share between 0 and 1"),
        ("[data]\nconcat_ratio = -1", "data.concat_ratio is -1.0, expected a share between 0 and 1"),
        ("[data]\nn_workers = -1", "data.n_workers is -1, expected zero or more"),
        ('[data]\nteacher_cache = ""', "data.teacher_cache is '', expected a folder, or to be left out"),
        (
            '[data]\nfeature_cache = "f"\nteacher_cache = "f"',
            "data.teacher_cache is 'f', expected another folder than data.feature_cache",
        ),
        (
            '[data]\nconcat_ratio = 0.5\nfeature_cache = "f"',
            "data.feature_cache is 'f', expected to be left out",
        ),
        (
            "[augment]\nspeed = [1.1, 0.9]",
            "augment.speed is (1.1, 0.9), expected two finite numbers, the smaller",
        ),
        ("[augment]\nspeed = [0.1, 1.0]", "augment.speed is (0.1, 1.0), expected factors from 0.5 to 2"),
        (
            "[augment]\nnoise_snr_db = [nan, 3]",
            "augment.noise_snr_db is (nan, 3.0), expected two finite numbers",
        ),
        ("[objective]\nn_response_tokens = 0", "objective.n_response_tokens is 0, expected at least 1"),
        ("[train]\nllm_bits = 2", "train.llm_bits is 2, expected one of 16, 8, 4"),
        (
            '[train]\nfrozen = "half"',
            "train.frozen is 'half', expected one of 'auto', 'replicated', 'sharded'",
        ),
        ('[base]\nllm = ""', "base.llm is '', expected a hub id or a local folder"),
        (
            "[prompt]\ndate = 2024-07-26",
            "prompt.date is datetime.date(2024, 7, 26), expected a text in quotes",
        ),
        ('[prompt]\ndate = "20240726"', "prompt.date is '20240726', expected a date such as '2024-07-26'"),
        ('[prompt]\ndate = "2024-02-30"', "prompt.date is '2024-02-30'"),
        (
            '[connector]\nform = "up"',
            "connector.form is 'up', expected one of 'anchored', 'autoregressive', 'left', 'right', 'stack'",
        ),
        ("[connector]\nform = []", "connector.form is [], expected one of"),
        ("[connector]\nn_queries = 0", "connector.n_queries is 0, expected at least 1"),
        ("[connector]\nslots_per_second = inf", "connector.slots_per_second is inf"),
        ("[objective]\nend_weight = -0.5", "objective.end_weight is -0.5, expected zero or more"),
        ("[objective]\nkl_temperature = 0", "objective.kl_temperature is 0.0"),
        (
            "[objective]\nhidden_weight = 0\nalign_weight = 0",
            "objective.align_weight is 0.0, expected a positive number",
        ),
        (
            "[objective]\nalign_only_ratio = 0.5\nalign_weight = 0",
            "objective.align_only_ratio is 0.5, expected 0, as",
        ),
        (
            '[connector]\nform = "right"\n[objective]\nhidden_positions = "all"',
            "objective.hidden_positions is 'all', expected last or suffix: form right",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(tmp_path: Path, toml: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    has_out = not toml or toml.startswith("out")
    path.write_text(toml if has_out else f'out = "runs/mine"\n{toml}', encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"out = ", "not TOML"), (b'out = "\xff"', "cannot be read"), (None, "cannot be read")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)
