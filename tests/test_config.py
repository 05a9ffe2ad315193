"""Recipes are read from TOML and written to TOML, and invalid ones get an error that names the setting."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.config import (
    RENAMED_SETTINGS,
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
RATIOS = st.floats(min_value=0, max_value=1)
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
        form=st.sampled_from(["query", "autoregressive", "anchored"]),
        init=st.sampled_from(["whisper", "random"]),
        n_queries=COUNTS,
        slots_per_second=st.floats(min_value=1e-12, max_value=1_000),
    ),
    objective=st.builds(
        ObjectiveSettings,
        hidden_weight=RATIOS,
        align_weight=POSITIVE,
        hidden_positions=st.sampled_from(["last", "suffix", "all"]),
        align_only_ratio=RATIOS,
    ),
    data=st.builds(
        DataSettings,
        source=st.lists(NAMES, min_size=1).map(tuple),
        n_clips=st.none() | COUNTS,
        n_augmented_views=COUNTS,
        max_invalid_ratio=RATIOS,
        concat_ratio=RATIOS,
        teacher_cache=st.none() | NAMES,
    ),
    augment=st.builds(AugmentSettings, noise_ratio=RATIOS, spec_augment=st.booleans())
    | st.builds(AugmentSettings, noise_ratio=st.floats(1e-9, 1), noise=NAMES),
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
def test_a_recipe_survives_a_round_trip_through_toml(
    recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert from_table(Recipe, to_table(recipe)) == recipe


def test_missing_keys_keep_their_defaults() -> None:
    assert from_table(Recipe, {"out": "runs/mine"}) == Recipe(out="runs/mine")


def test_an_integer_is_accepted_as_a_number() -> None:
    settings = from_table(TrainSettings, {"peak_lr": 1, "betas": [0, 0.5]})
    assert settings == TrainSettings(peak_lr=1.0, betas=(0.0, 0.5))
    assert isinstance(settings.peak_lr, float)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("", "out is missing; expected a string in quotes"),
        ('out = ""', "out is '', expected a folder"),
        ("out = 3", "out is 3, expected a string in quotes"),
        ("steps = 3", "unknown key steps; expected one of out, base"),
        ("[train]\nsteps = 3", "unknown key train.steps; expected one of n_steps"),
        ("n_stepps = 3", "; did you mean train.n_steps?"),
        ("[trian]\nn_steps = 3", "; did you mean train?"),
        ("[train]\nbatchsize = 3", "; did you mean train.batch_size?"),
        ("[data]\npeak_lr = 3", "; did you mean train.peak_lr?"),
        ("out = 2020-13-45", "not TOML"),
        ("out = " + "[" * 5_000, "not TOML (tables or lists too deep)"),
        ("train = 3", "train is 3, expected a table"),
        ("[train]\nn_steps = 1.5", "train.n_steps is 1.5, expected an integer"),
        ("[train]\nn_steps = true", "train.n_steps is True, expected an integer"),
        ("[train]\nn_steps = 0", "train.n_steps is 0, expected at least 1"),
        ('[train]\npeak_lr = "fast"', "train.peak_lr is 'fast', expected a number"),
        ("[train]\npeak_lr = -1", "train.peak_lr is -1.0, expected a positive number"),
        ("[train]\npeak_lr = nan", "train.peak_lr is nan, expected a positive number"),
        ("[train]\npeak_lr = inf", "train.peak_lr is inf, expected a positive number"),
        (f"[train]\npeak_lr = {10**400}", "train.peak_lr is 1000"),
        ("[train]\nwarmup_ratio = 2", "train.warmup_ratio is 2.0, expected a ratio between 0 and 1"),
        ("[train]\nbetas = [0.9]", "train.betas is [0.9], expected a list of 2 numbers"),
        ('[train]\nbetas = [0.9, "b"]', "train.betas[1] is 'b', expected a number"),
        ("[train]\nbetas = [0.9, 1.0]", "train.betas is (0.9, 1.0), expected two numbers"),
        ("[train]\nseed = -1", "train.seed is -1, expected an integer from 0"),
        (
            "[train]\nmicrobatch_gb = 0.0",
            "train.microbatch_gb is 0.0, expected a positive number",
        ),
        ("[data]\nn_clips = 0", "data.n_clips is 0, expected at least 1"),
        ('[data]\nn_clips = "all"', "data.n_clips is 'all', expected an integer"),
        ("[connector]\ndropout = 1.0", "connector.dropout is 1.0, expected a rate from 0 to below 1"),
        ("[data]\nn_augmented_views = 0", "data.n_augmented_views is 0, expected at least 1"),
        ('[data]\nsource = ""', "data.source is ('',), expected a .parquet, .jsonl or .tar file"),
        ("[data]\nsource = []", "data.source is (), expected a .parquet"),
        ("[data]\nsource = 3", "data.source is 3, expected a string in quotes, or a list of them"),
        ('[data]\nsource = ["a", 3]', "data.source[1] is 3, expected a string in quotes"),
        ("[data]\nmax_invalid_ratio = 2", "data.max_invalid_ratio is 2.0, expected a ratio between 0 and 1"),
        ("[data]\nconcat_ratio = -1", "data.concat_ratio is -1.0, expected a ratio between 0 and 1"),
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
            '[objective]\nanchor_weight = 1\n[data]\nfeature_cache = "f"\n[augment]\nnoise_ratio = 0.5',
            "data.feature_cache is 'f', expected to be left out: objective.anchor_weight needs",
        ),
        (
            '[objective]\nanchor_weight = 1\n[data]\nfeature_cache = "f"\nn_augmented_views = 2',
            "data.feature_cache is 'f', expected to be left out: objective.anchor_weight needs",
        ),
        (
            '[augment]\nnoise = "street"',
            "augment.noise is 'street', expected to be left out, as augment.noise_ratio is zero",
        ),
        (
            '[base]\nencoder_window = "full"\nsilence_margin_s = 4.0',
            'base.silence_margin_s is 4.0, expected 0, as base.encoder_window is "full"',
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
            '[train]\nfrozen_placement = "half"',
            "train.frozen_placement is 'half', expected one of 'auto', 'replicated', 'sharded'",
        ),
        ('[base]\nllm = ""', "base.llm is '', expected a hub id, a local folder or a GGUF file"),
        (
            "[prompt]\ndate = 2024-07-26",
            "prompt.date is datetime.date(2024, 7, 26), expected a string in quotes",
        ),
        ('[prompt]\ndate = "20240726"', "prompt.date is '20240726', expected a date such as '2024-07-26'"),
        ('[prompt]\ndate = "2024-02-30"', "prompt.date is '2024-02-30'"),
        (
            '[connector]\nform = "up"',
            "connector.form is 'up', expected one of 'anchored', 'autoregressive', 'diva', 'query', 'stack'",
        ),
        ("[connector]\nform = []", "connector.form is [], expected one of"),
        ("[connector]\nn_queries = 0", "connector.n_queries is 0, expected at least 1"),
        ("[connector]\nslots_per_second = inf", "connector.slots_per_second is inf"),
        ("[connector]\nslots_per_second = 1e308", "expected a number above 0 and at most 1,000"),
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
            '[connector]\nform = "diva"\n[objective]\nhidden_positions = "all"',
            "objective.hidden_positions is 'all', expected last or suffix: form diva",
        ),
    ],
)
def test_an_invalid_setting_is_rejected_with_its_dotted_name(tmp_path: Path, toml: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    has_out = not toml or toml.startswith("out")
    path.write_text(toml if has_out else f'out = "runs/mine"\n{toml}', encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_recipe(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


RENAMED_VALUES = [(*old, new) for old, new in RENAMED_SETTINGS.items() if isinstance(old, tuple)]
RENAMED_KEYS = [(old, new) for old, new in RENAMED_SETTINGS.items() if isinstance(old, str)]


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS)
def test_an_old_key_gets_an_error_that_names_the_new_key(old: str, new: str) -> None:
    table_name, key = old.split(".")
    with pytest.raises(ConfigError) as raised:
        from_table(Recipe, {"out": "runs/mine", table_name: {key: 1}}, renamed=RENAMED_SETTINGS)
    assert str(raised.value) == f"{old} has a new name: write {new}"
    new_table_name, new_key = new.split(".")
    assert new_table_name == table_name
    assert new_key in vars(getattr(Recipe(out="runs/mine"), table_name))


def test_an_old_value_gets_an_error_that_names_the_new_value() -> None:
    @dataclass(frozen=True)
    class Settings:
        form: Literal["new", "other"]

    with pytest.raises(ConfigError) as raised:
        from_table(Settings, {"form": "old"}, "connector.", {("connector.form", "old"): "new"})
    assert str(raised.value) == "connector.form is 'old', which has a new name: write 'new'"
    assert from_table(Settings, {"form": "new"}) == Settings(form="new")


@pytest.mark.parametrize(("name", "old", "new"), RENAMED_VALUES)
def test_each_old_value_gets_an_error_that_names_the_new_value(name: str, old: str, new: str) -> None:
    table_name, key = name.split(".")
    with pytest.raises(ConfigError) as raised:
        from_table(Recipe, {"out": "runs/mine", table_name: {key: old}}, renamed=RENAMED_SETTINGS)
    assert str(raised.value) == f"{name} is {old!r}, which has a new name: write {new!r}"
    assert from_table(Recipe, {"out": "runs/mine", table_name: {key: new}})


def test_a_recipe_file_with_an_old_key_is_rejected_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('out = "runs/mine"\n[data]\nn_views = 3\n', encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_recipe(path)
    assert str(raised.value) == f"{path}: data.n_views has a new name: write data.n_augmented_views"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"out = ", "not TOML"), (b'out = "\xff"', "cannot be read"), (None, "cannot be read")],
)
def test_a_file_that_is_not_a_recipe_is_rejected(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)
