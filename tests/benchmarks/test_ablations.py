"""The ablations at toy size: what each arm changes, that runs resume, what is measured, and the results."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.ablations import arms, measures, plots, results, run
from ossicle import checkpoint
from ossicle.config import ConnectorSettings
from ossicle.ear import Ear, EarSettings
from ossicle.errors import ConfigError
from ossicle.evaluation import Item, load_suite
from ossicle.settings_io import to_table

# Arms

RIGHT = {"connector.form": "diva", "connector.n_queries": 64, "objective.hidden_positions": "suffix"}
NO_INPUT = {
    "objective.align_weight": 0.0,
    "objective.token_ce_weight": 0.0,
    "objective.align_only_ratio": 0.0,
}
KL = {"objective.hidden_weight": 0.0, "objective.kl_weight": 0.1}
COMMAS = {"data.source": ["commas.parquet"], "data.feature_cache": "features-punctuated"}
FULL = {"base.encoder_window": "full", "data.feature_cache": "features-full"}
ONE_BY_ONE = {"connector.form": "autoregressive", "train.peak_lr": 7e-4}
KNOWING = ONE_BY_ONE | {"objective.token_ce_weight": 0.0, "train.peak_lr": 2e-4}
CHANGES: dict[str, dict[str, Any]] = {
    "anchored": {},
    "hidden only": NO_INPUT,
    "alignment only": {"objective.hidden_weight": 0.0},
    "KL only": NO_INPUT | KL,
    "KL in place of hidden": KL,
    "no naming": {"objective.token_ce_weight": 0.0},
    "first 8 answer positions": {"objective.n_response_tokens": 8},
    "hidden at last": {"objective.hidden_positions": "last"},
    "hidden at suffix": {"objective.hidden_positions": "suffix"},
    "random init": {"connector.init": "random"},
    "stacking MLP": {
        "connector.form": "stack",
        "connector.n_stacked": 6,
        "objective.hidden_positions": "suffix",
    },
    "4 layers": {"connector.n_layers": 4},
    "2 layers": {"connector.n_layers": 2},
    "autoregressive": KNOWING,
    "autoregressive, random init": ONE_BY_ONE | {"connector.init": "random"},
    "query": {"connector.form": "query"},
    "diva": RIGHT,
    "published": RIGHT
    | FULL
    | {
        "objective.hidden_positions": "last",
        "objective.token_ce_weight": 0.0,
        "objective.align_only_ratio": 0.0,
    },
    "anchored, full window": FULL,
    "30 % of the speech": {"data.n_clips": 3210},
    "10 % of the speech": {"data.n_clips": 1070},
    "anchored, punctuated": COMMAS,
    "autoregressive, punctuated": COMMAS | KNOWING,
    "query, punctuated": COMMAS | {"connector.form": "query"},
    "diva, punctuated": COMMAS | RIGHT,
}
"""Settings of each arm's recipe that differ from the base, except for the run's own folder."""


@pytest.fixture
def stub_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of punctuated speech is written."""
    monkeypatch.setattr(arms, "write_punctuated_speech", lambda out: out / "commas.parquet")
    monkeypatch.setattr(arms.pq, "read_metadata", lambda path: type("Footer", (), {"num_rows": 10_700}))


def flatten(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flattens settings to dotted names."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flatten(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return found


@pytest.mark.usefixtures("stub_speech")
def test_an_arm_changes_what_its_name_says() -> None:
    assert list(arms.ARMS) == list(CHANGES)
    base = flatten(to_table(arms.build_recipe(arms.ARMS["anchored"], 1, 30, Path())))
    assert (base["train.seed"], base["train.n_steps"], base["objective.align_only_ratio"]) == (1, 30, 0.5)
    folders = set()
    for name, arm in arms.ARMS.items():
        settings = flatten(to_table(arms.build_recipe(arm, 1, 30, Path())))
        folders.add(settings.pop("out"))
        assert {key: value for key, value in settings.items() if value != base.get(key)} == CHANGES[name]
        assert set(base) - set(settings) <= {"out"}
    assert len(folders) == len(arms.ARMS)


def test_commas_depend_on_the_row_and_change_nothing_else() -> None:
    text = "seven is sound minus guitar quickly and sweet"
    texts = {arms.add_commas(text, f"{row:05}") for row in range(50)}
    assert len(texts) > 20
    assert {punctuated.replace(",", "") for punctuated in texts} == {text}
    assert not any(punctuated.endswith(",") for punctuated in texts)
    ratio = sum(punctuated.count(",") for punctuated in texts) / sum(
        punctuated.count(" ") for punctuated in texts
    )
    assert 0.2 < ratio < 0.45
    assert arms.add_commas(text, "00007") == arms.add_commas(text, "00007")


# Runs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ablations on a few clips and two questions of the suite."""
    recipe_of, clips_of, items = run.build_recipe, run.load_training_clips, load_suite("pocket")

    def build_small_recipe(arm: Any, seed: int, n_steps: int, out: Path) -> Any:
        recipe = recipe_of(arm, seed, n_steps, out)
        return replace(
            recipe,
            data=replace(recipe.data, n_clips=12),
            train=replace(recipe.train, batch_size=4),
        )

    monkeypatch.setattr(run, "build_recipe", build_small_recipe)
    monkeypatch.setattr(run, "load_training_clips", lambda: clips_of(4))
    monkeypatch.setattr(measures, "load_suite", lambda name: (items[0], items[-1]))
    monkeypatch.setattr(measures, "MAX_ANSWER", 3)
    return run


def test_runs_are_trained_once_and_measured_again_on_request(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(tmp_path), "--steps", "2", "--seeds", "0", "--only", "anchored"]
    first = small.main([*flags, "diva", "--json", str(tmp_path / "found.json")])
    output = capsys.readouterr().out
    assert json.loads(output.splitlines()[-1]) == json.loads((tmp_path / "found.json").read_text())
    assert first["failed"] == {}
    base, right = (first["arms"][name]["mean"] for name in ("anchored", "diva"))
    assert {
        "ear",
        "tokens named",
        "KL",
        "L2",
        "cosine",
        "top-1",
        "ear, in noise",
    } <= right.keys() & base.keys()
    assert base.keys() - right.keys() == {"length right", "length right, in noise"}
    assert right["training TFLOP"] > 2 * base["training TFLOP"] > 0
    assert base["KL"] > 1
    assert base["L2"] > 0
    assert (base["cascade"], base["text"]) == (right["cascade"], right["text"])

    def fail_if_called(*_: Any) -> None:
        raise AssertionError("this run is finished")

    monkeypatch.setattr(small, "train", fail_if_called)
    monkeypatch.setattr(small, "measure_token_naming", lambda *_: {"tokens named": 0.25})
    assert small.main([*flags, "diva"])["arms"] == first["arms"]
    again = small.main([*flags, "query", "--measure-again"])
    assert again["arms"]["anchored"]["mean"]["tokens named"] == 0.25
    assert again["arms"]["diva"] | {"minus_base": {}} == first["arms"]["diva"] | {"minus_base": {}}
    assert "query" not in again["arms"]
    other = small.main([*flags[:2], "--steps", "3", *flags[4:]])
    assert "another recipe" in other["failed"]["anchored, seed 0"]
    monkeypatch.setattr(small, "run_all", lambda runs, arms, *_, **__: dict.fromkeys(arms, "requested"))
    assert small.main([*flags, "--show"])["failed"] == {}


def test_runs_in_the_file_of_results_are_not_repeated(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    monkeypatch.setattr(small.AblationRuns, "train", lambda _, arm, seed: trained.append((arm.name, seed)))
    monkeypatch.setattr(small.AblationRuns, "measure", lambda *_, **__: {"ear": 0.5})
    kept = tmp_path / "kept.json"
    runs = {"0": {"ear": 0.25, "training TFLOP": 1.0}}
    kept.write_text(json.dumps({"n_steps": 2, "arms": {"anchored": {"runs": runs}}}))
    flags = [
        "--out",
        str(tmp_path / "runs"),
        "--seeds",
        "0",
        "1",
        "--only",
        "anchored",
        "query",
        "--json",
        str(kept),
    ]
    found = small.main([*flags, "--steps", "2"])
    assert trained == [("query", 0), ("anchored", 1), ("query", 1)]
    assert found["arms"]["anchored"]["runs"] == runs
    assert json.loads(kept.read_text()) == found
    with pytest.raises(ConfigError, match="holds runs of 2 steps, expected 3"):
        small.main([*flags, "--steps", "3"])
    kept.write_text("[]")
    with pytest.raises(ConfigError, match="is no file of results of this benchmark"):
        small.main([*flags, "--steps", "2"])


def test_a_failed_run_is_reported_and_stops_no_other(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: Any) -> None:
        if recipe.connector.form == "query":
            raise ConfigError("no such thing")

    monkeypatch.setattr(small, "train", train)
    monkeypatch.setattr(small.AblationRuns, "measure", lambda *_, **__: {"ear": 0.5})
    found = small.main(["--out", str(tmp_path), "--seeds", "0", "1", "--only", "query", "anchored"])
    assert found["failed"] == {"query, seed 0": "no such thing", "query, seed 1": "no such thing"}


# Measures


TEXTS = ("where is sweden", "what does the dog say", "how many legs does a duck have")


class PerfectEar(Ear):
    """Embeds a sound as the embeddings of its transcript, chosen by its length, after some slots of noise."""

    texts = TEXTS
    n_noise = 0
    n_lost = 0

    def embed_audio(self, sounds: Sequence[np.ndarray]) -> list[Tensor]:
        audio_tokens = []
        for sound in sounds:
            ids = list(self.template.split_prompt(self.texts[len(sound) // 2_000 - 1]).text)
            noise = torch.randn(self.n_noise, 192, generator=torch.Generator().manual_seed(0))
            audio_tokens.append(torch.cat([noise, self.embed(ids[: len(ids) - self.n_lost])]))
        return audio_tokens


def build_perfect_ear(form: Any, *, n_noise: int = 0, n_lost: int = 0) -> PerfectEar:
    ear = PerfectEar.new(EarSettings(connector=ConnectorSettings(form=form, n_queries=40)), "cpu")
    assert isinstance(ear, PerfectEar)
    ear.n_noise, ear.n_lost = n_noise, n_lost
    return ear


def build_items() -> list[Item]:
    tone = np.sin(np.arange(2_000 * len(TEXTS)) / 9).astype(np.float32)
    return [
        Item(id=str(n), audio=tone[: 2_000 * (n + 1)], text=text, instruction=instruction)
        for n, (text, instruction) in enumerate(zip(TEXTS, (None, "Answer in Spanish.", None), strict=True))
    ]


@pytest.mark.parametrize(("form", "n_noise"), [("query", 0), ("diva", 7)])
def test_tokens_of_a_perfect_ear_are_right_wherever_its_slots_start(form: str, n_noise: int) -> None:
    ear = build_perfect_ear(form, n_noise=n_noise)
    found = measures.measure_token_naming(ear, build_items())
    assert found.pop("length right", 1.0) == 1.0
    assert found == {"tokens named": 1.0, "errors per token": 0.0}
    clips = measures.Clips(audio=[item.audio for item in build_items()] * 20, texts=[*TEXTS] * 20)
    slots = measures.measure_slot_errors(ear, clips)
    longest = max(len(ids) for ids in measures.tokenize(ear, TEXTS))
    for side in ("from the start", "from the end"):
        assert slots[side][:longest] == pytest.approx([0.0] * longest)
        assert slots[side][longest:] == [None] * (16 - longest)


@pytest.mark.parametrize(("form", "n_noise"), [("query", 0), ("diva", 7)])
def test_commas_do_not_count(form: str, n_noise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = build_perfect_ear(form, n_noise=n_noise)
    monkeypatch.setattr(PerfectEar, "texts", tuple(text.replace(" ", ", ") for text in TEXTS))
    found = measures.measure_token_naming(ear, build_items())
    assert found.pop("length right", 1.0) == 1.0
    assert found == {"tokens named": 1.0, "errors per token": 0.0}


def test_a_lost_token_is_one_error_and_a_wrong_length() -> None:
    ear = build_perfect_ear("query", n_lost=1)
    n_tokens = sum(len(ids) for ids in measures.tokenize(ear, TEXTS))
    found = measures.measure_token_naming(ear, build_items())
    assert found["tokens named"] == pytest.approx(1 - 3 / n_tokens)
    assert found["errors per token"] == pytest.approx(3 / n_tokens)
    assert found["length right"] == 0.0


def test_noise_depends_on_the_question() -> None:
    tone = np.sin(np.arange(8_000) / 9).astype(np.float32)
    one, same, other = (
        measures.add_white_noise(Item(id=i, audio=tone, text="a"))[0] for i in ("0001", "0001", "0002")
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.square(one - tone).mean() == pytest.approx(np.square(tone).mean() / 10, rel=0.05)


def test_cost_is_summed_over_the_metrics_of_a_run(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "tflops": 2.0, "clips_per_s": 4.0},
        {"step": 15, "tflops": 3.0, "clips_per_s": 5.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measures.read_training_cost(tmp_path, 8) == {
        "training TFLOP": 2 / 4 * 80 + 3 / 5 * 40,
        "seconds trained": 80 / 4 + 40 / 5,
    }


# Results


def build_runs() -> dict[str, dict[int, dict[str, Any]]]:
    def run(right: float, named: float) -> dict[str, Any]:
        noisy = {"ear, in noise": right / 2, "tokens named, in noise": named - 0.1}
        slots = {side: [0.5] * 8 + [None] * 8 for side in ("from the start", "from the end")}
        return {"ear": right, "tokens named": named, "training TFLOP": 12.0, "by slot": slots} | noisy

    return {
        "anchored": {0: run(0.2, 0.6), 1: run(0.3, 0.7)},
        "query": {1: run(0.1, 0.5), 2: run(0.9, 0.9)},
        "anchored, punctuated": {0: run(0.1, 0.55)},
    }


def test_differences_are_over_the_seeds_of_both() -> None:
    found = results.build_result(build_runs(), 1_000, {})
    base, query = found["arms"]["anchored"], found["arms"]["query"]
    assert base["mean"]["ear"] == pytest.approx(0.25)
    assert base["spread"]["ear"] == pytest.approx(0.0707, abs=1e-4)
    assert query["minus_base"]["ear"] == {"mean": pytest.approx(-0.2), "spread": None, "n": 1}
    falls = found["falls"]
    assert falls["anchored: in noise"]["ear"]["mean"] == pytest.approx(-0.125)
    assert falls["anchored: punctuated"]["tokens named"] == {
        "mean": pytest.approx(-0.05),
        "spread": None,
        "n": 1,
    }
    assert falls.keys() == {"anchored: in noise", "query: in noise", "anchored: punctuated"}
    output = "\n".join(results.format_tables(found))
    assert "25.0 ±7.1" in output
    assert "-20.0 (n 1)" in output
    assert results.format_tables(results.build_result({}, 1_000, {}))


def test_plots_without_matplotlib_are_refused_before_training(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "benchmarks.ablations.plots", raising=False)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        small.main(["--out", str(tmp_path / "runs"), "--plot", str(tmp_path / "a.png")])
    assert not (tmp_path / "runs").exists()


def test_plots_are_drawn_of_any_results(tmp_path: Path) -> None:
    found = results.build_result(build_runs(), 1_000, {})
    for path in plots.draw_plots(found, tmp_path / "found.png"):
        assert path.stat().st_size > 10_000
    empty = results.build_result({}, 1_000, {})
    assert all(path.exists() for path in plots.draw_plots(empty, tmp_path / "empty.png"))


def test_a_run_with_an_ear_is_trained(tmp_path: Path) -> None:
    folder = arms.get_run_folder(arms.ARMS["30 % of the speech"], 2, tmp_path)
    assert folder == tmp_path / "30-percent-of-the-speech-2"
    (folder / checkpoint.RUN_EAR).mkdir(parents=True)
    bench = run.AblationRuns(tmp_path, 10, {})
    assert bench.is_trained(arms.ARMS["30 % of the speech"], 2)
    assert not bench.is_trained(arms.ARMS["30 % of the speech"], 1)
