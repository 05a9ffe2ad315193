"""The command line as a user meets it: what is printed, what is written, which exit code ends it."""

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.tiny_models import save_tiny_bases

import ossicle
from ossicle import checkpoint
from ossicle.audio.waveform import AudioSource
from ossicle.backbones import model_files
from ossicle.chat import generation
from ossicle.cli import main
from ossicle.config import load_recipe
from ossicle.ear import Ear
from ossicle.evaluation import read_report
from ossicle.training.trainer import count_steps_within
from tools.pocket.speech import write_table

SAID = ["the cat sat on the mat", "the old man said yes", "hello there", "how are you today"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test in a folder of its own; what main tells transformers is undone."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(generation, "MAX_NEW_TOKENS", 4)  # random models never come to an end
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny bases, four clips as files, a manifest and a recipe that names them."""
    folder = tmp_path_factory.mktemp("world")
    base = save_tiny_bases(folder)
    rng = np.random.default_rng(0)
    for number in range(len(SAID)):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(8_000 + 2_000 * number), 16_000)
    lines = [json.dumps({"audio": f"{number}.wav", "text": text}) for number, text in enumerate(SAID)]
    (folder / "speech.jsonl").write_text("\n".join(lines))
    (folder / "recipe.toml").write_text(
        f"""
        out = "run"
        base = {{encoder = "{base.encoder}", llm = "{base.llm}"}}
        connector = {{n_queries = 32}}
        data = {{source = "{folder / "speech.jsonl"}", n_workers = 0}}
        train = {{n_steps = 3, batch_size = 2, peak_lr = 1e-3}}
        """
    )
    return folder


@pytest.fixture(scope="module")
def ear(world: Path) -> str:
    """A trained ear's run, made by `ossicle train`."""
    out = world / "trained"
    assert main(["train", str(world / "recipe.toml"), "--out", str(out)]) == 0
    return str(out)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with an exit code and one line on stderr, and gives that line."""

    def run(code: int, *argv: str) -> str:
        capsys.readouterr()
        assert main(argv) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("ossicle: ")
        return lines[0]

    return run


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond so many bytes, for the test's duration."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# The program itself


def test_help_names_the_commands_that_exist_and_loads_no_models() -> None:
    code = (
        "import sys; from ossicle.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "new", "train", "teacher", "plan", "data", "chat", "serve", "eval"):
        assert f"• {command} " in done.stdout
    for command in ("import", "export"):
        assert f"• {command} " not in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ossicle {ossicle.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["sing"],
        ["chat"],
        ["train"],
        ["eval", "ear"],
        ["chat", "ear", "a.wav", "--txt", "b"],
        ["demo", "--minutes", "x"],
    ],
)
def test_flags_that_cannot_be_understood_exit_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    assert "usage: ossicle" in capsys.readouterr().out


def test_nobody_reads_the_output_any_more(
    ear: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nobody)
        with pytest.raises(SystemExit) as stop:
            main(["chat", ear, str(world / "0.wav")])
    assert stop.value.code == 1
    assert capsys.readouterr().err == ""


# train


def test_train_writes_a_run_that_loads_as_an_ear(ear: str) -> None:
    loaded = ossicle.load(ear)
    assert loaded.settings == ossicle.load(Path(ear) / "ear").settings
    assert load_recipe(Path(ear) / "recipe.toml").train.n_steps == 3


def test_flags_override_the_recipe(world: Path) -> None:
    argv = [
        "train",
        str(world / "recipe.toml"),
        "--out",
        "other",
        "--train.n-steps",
        "1",
        "--train.seed",
        "5",
    ]
    assert main(argv) == 0
    recipe = load_recipe(Path("other/recipe.toml"))
    assert (recipe.train.n_steps, recipe.train.seed, recipe.train.batch_size) == (1, 5, 2)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", str(world / "recipe.toml"), "--out", "a run", "--train.n-steps", "4"]
    from ossicle.training import trainer

    train_step = trainer.train_step

    def interrupted(run: trainer.Run, number: int, portions: Any) -> Any:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(run, number, portions)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", interrupted)
        assert main(argv) == 130
    error = capsys.readouterr().err
    assert "stopped after step 2 of 4" in error
    assert error.endswith(f"ossicle train {world / 'recipe.toml'} --out 'a run' --train.n-steps 4\n")
    assert not Path("a run/ear").exists()
    assert main(argv) == 0
    assert "step 2" in capsys.readouterr().out
    assert ossicle.load("a run")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("out = 'x'\n[train]\nn_setps = 3", "train.n_setps"),
        ("out = 'x'\n[train]\nn_steps = 'many'", "train.n_steps"),
        ("[train]\nn_steps = 3", "out"),
        ("out = ", "TOML"),
        ("out = 'x'\n[connector]\nform = 'sideways'", "'query'"),
    ],
)
def test_a_recipe_that_cannot_be_used(refused: Callable[..., str], text: str, said: str) -> None:
    Path("bad.toml").write_text(text)
    line = refused(2, "train", "bad.toml")
    assert "bad.toml" in line
    assert said in line
    assert files(Path()) == {"bad.toml"}


def test_no_recipe_or_one_in_the_wrong_place(refused: Callable[..., str], world: Path) -> None:
    assert "nowhere.toml" in refused(2, "train", "nowhere.toml")
    assert "recipe comes first" in refused(2, "train", "--train.seed", "1", str(world / "recipe.toml"))
    assert "train.n_steps is 0" in refused(2, "train", str(world / "recipe.toml"), "--train.n-steps", "0")


def test_bases_of_the_wrong_kind(refused: Callable[..., str], world: Path) -> None:
    train = ("train", str(world / "recipe.toml"))
    whisper, llm = str(world / "whisper"), str(world / "llm")
    assert "expected a Whisper" in refused(1, *train, "--base.encoder", llm)
    assert "expected a causal LM" in refused(1, *train, "--base.llm", whisper)
    mute = Path("mute")
    shutil.copytree(llm, mute)
    (mute / "chat_template.jinja").unlink()
    assert "chat template" in refused(1, *train, "--base.llm", "mute")
    empty = Path("empty")
    empty.mkdir()
    assert "'empty'" in refused(1, *train, "--base.llm", "empty")
    assert not Path("run").exists()


def test_speech_that_cannot_be_used(refused: Callable[..., str], world: Path) -> None:
    train = ("train", str(world / "recipe.toml"), "--data.source")
    assert "nowhere.jsonl" in refused(1, *train, "nowhere.jsonl")
    Path("speech.jsonl").write_text('{"audio": "gone.wav", "text": "hello"}\n')
    assert "gone.wav" in refused(1, *train, "speech.jsonl")
    Path("noise.jsonl").write_text('{"audio": "noise.jsonl", "text": "hello"}\n')
    assert "noise.jsonl" in refused(1, *train, "noise.jsonl")
    assert not Path("run/ear").exists()


def test_a_full_disk_leaves_nothing_half_written(
    refused: Callable[..., str], world: Path, small_disk: Callable[[int], None]
) -> None:
    small_disk(30_000)
    line = refused(1, "train", str(world / "recipe.toml"))
    assert "cannot be written" in line
    assert not {name for name in files(Path("run")) if "safetensors" in name or name.startswith(("ear", "."))}


# chat


def test_chat_prints_the_answer_of_the_python_api(
    ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = str(world / "1.wav")
    asked = ["chat", ear, sound, "--text", "please", "--system", "hello", "--max-new-tokens", "6"]
    assert main(asked) == 0
    messages = [
        {"role": "system", "content": "hello"},
        {"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": "please"}]},
    ]
    assert capsys.readouterr().out == ossicle.load(ear).chat(messages, max_new_tokens=6) + "\n"


def test_chat_samples_by_a_seed(ear: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(seed: int) -> str:
        asked = ["chat", ear, str(world / "1.wav"), "--temperature", "1.5", "--top-p", "0.95"]
        assert main([*asked, "--max-new-tokens", "12", "--seed", str(seed)]) == 0
        return capsys.readouterr().out

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in (1, 2, 3)}) > 1


def test_sound_that_cannot_be_heard(refused: Callable[..., str], ear: str, world: Path) -> None:
    assert "nowhere.wav" in refused(1, "chat", ear, "nowhere.wav")
    assert "recipe.toml" in refused(1, "chat", ear, str(world / "recipe.toml"))
    soundfile.write("long.wav", np.zeros(3_601 * 1_000), 1_000)
    assert "expected at most 3600 s" in refused(1, "chat", ear, "long.wav")
    Path("empty.wav").touch()
    assert "empty.wav" in refused(1, "chat", ear, "empty.wav")


def test_chat_takes_one_sound_and_options_that_can_be(
    refused: Callable[..., str], ear: str, world: Path
) -> None:
    sound = str(world / "0.wav")
    assert "one sound" in refused(2, "chat", ear)
    assert "one sound" in refused(2, "chat", ear, sound, "--mic")
    assert "--max-new-tokens is 0" in refused(2, "chat", ear, sound, "--max-new-tokens", "0")
    assert "--temperature is -1" in refused(2, "chat", ear, sound, "--temperature", "-1")
    assert "--top-p is 7" in refused(2, "chat", ear, sound, "--top-p", "7")
    assert "--minutes is inf" in refused(2, "demo", "--minutes", "inf")
    assert "not valid Unicode" in refused(1, "chat", ear, sound, "--text", "caf\udce9")


def test_temperature_zero_is_greedy(ear: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for flags in ([], ["--temperature", "0"]):
        assert main(["chat", ear, str(world / "0.wav"), *flags]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_report_is_written_though_nobody_reads_the_table(
    ear: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("ossicle.evaluation.print_table", unread)
    monkeypatch.setattr(os, "dup2", lambda *files: None)
    assert main(["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "mine.json"]) == 1
    assert json.loads(Path("mine.json").read_text())["n"] == len(SAID)


def new(world: Path) -> tuple[str, ...]:
    return "new", "begun", "--llm", str(world / "llm"), "--encoder", str(world / "whisper")


def test_a_new_ear_answers_without_training(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(new(world)) == 0
    said = capsys.readouterr().out
    made: Any = ossicle.load("begun").connector
    n_known = len(made.vocabulary_head.llm_embeddings)
    assert f"It knows {n_known} of the LLM's" in said
    assert main(["chat", "begun", str(world / "0.wav"), "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_new_ear_that_cannot_be(
    refused: Callable[..., str], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, out, *_, whisper = new(world)
    assert "'nowhere/at/all': there is no such folder" in refused(
        1, command, out, "--llm", "nowhere/at/all", "--encoder", whisper
    )
    assert "expected a Whisper" in refused(1, command, out, "--llm", whisper, "--encoder", str(world / "llm"))
    assert "is there already" in refused(2, command, str(world), *new(world)[2:])
    assert "is there already" in refused(2, command, str(world / "0.wav"), *new(world)[2:])
    monkeypatch.setattr("ossicle.ear.shared_tokens", lambda *_: None)
    assert "no token in common" in refused(2, *new(world))
    assert not Path("begun").exists()


def test_an_ear_that_is_none_or_belongs_to_other_models(
    refused: Callable[..., str], ear: str, world: Path
) -> None:
    sound = str(world / "0.wav")
    assert "nowhere is not an ear" in refused(1, "chat", "nowhere", sound)
    assert "is not an ear" in refused(1, "chat", str(world / "llm"), sound)

    other = Path("other")
    shutil.copytree(ear, other)
    config = json.loads((other / "ear/config.json").read_text())
    ours = config["fingerprints"]["llm"]
    config["fingerprints"]["llm"] = "0123456789abcdef"
    (other / "ear/config.json").write_text(json.dumps(config))
    line = refused(1, "chat", "other", sound)
    assert ours in line
    assert "0123456789abcdef" in line


def test_a_microphone_is_asked_for_or_refused(
    refused: Callable[..., str],
    ear: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class PortAudioError(Exception): ...

    loudness = [1.0]

    class InputStream:
        def __init__(self, *, samplerate: int, channels: int, dtype: str, callback: Callable) -> None:
            loud = loudness.pop(0) if len(loudness) > 1 else loudness[0]
            wave = loud * np.sin(np.arange(samplerate) / 9, dtype=dtype)
            self.hear = lambda: callback(wave.astype(dtype)[:, None], samplerate, None, None)

        def __enter__(self) -> None:
            self.hear()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "ossicle[mic]" in refused(2, "chat", ear, "--mic")

    module = types.ModuleType("sounddevice")
    vars(module).update(
        PortAudioError=PortAudioError,
        InputStream=InputStream,
        query_devices=lambda kind: {"default_samplerate": 44_100.0},
    )
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["chat", ear, "--mic", "--max-new-tokens", "3"]) == 0
    once = capsys.readouterr()
    assert once.err.count("Speak now") == 2

    # A conversation: three turns, of which the second is silence and is asked for again; then Ctrl-D.
    talks: list[Any] = []
    stream = Ear.stream
    monkeypatch.setattr(
        Ear, "stream", lambda *given, **options: talks.append(list(given[1])) or stream(*given, **options)
    )
    loudness[:] = [1.0, 0.0, 0.5, 1.0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n\n"))
    assert main(["chat", ear, "--mic", "--max-new-tokens", "3", "--system", "hello"]) == 0
    said = capsys.readouterr()
    assert "contains only silence" in said.err
    first, second = said.out.splitlines()
    assert [turn["role"] for turn in talks[1]] == ["system", "user", "assistant", "user"]
    assert talks[1][2]["content"] == first
    assert len(talks) == 2
    assert second == ossicle.load(ear).chat(talks[1], max_new_tokens=3)

    loudness[:] = [0.0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["chat", ear, "--mic"]) == 1
    assert "contains only silence" in capsys.readouterr().err

    def nothing(kind: str) -> None:
        raise PortAudioError("no device")

    vars(module).update(query_devices=nothing)
    assert "no microphone" in refused(1, "chat", ear, "--mic")


# eval


def test_eval_writes_the_report_and_prints_the_table(
    ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "reports/mine.json"]
    assert main(argv) == 0
    assert "text ceiling" in capsys.readouterr().out
    report = json.loads(Path("reports/mine.json").read_text())
    assert {"suite", "n", "text_ceiling", "cascade", "ear", "items"} <= report.keys()
    assert report["n"] == len(SAID)
    assert report["text_ceiling"]["value"] == 1.0
    assert "wer" in report["cascade"]
    assert report["command"] == f"ossicle eval {ear} --suite {world / 'speech.jsonl'} --out reports/mine.json"
    assert "<html" in Path("reports/mine.html").read_text()
    assert sorted(path.name for path in Path("reports").iterdir()) == ["mine.html", "mine.json"]


def test_another_recogniser_writes_for_the_cascade(
    ear: str, world: Path, refused: Callable[..., str]
) -> None:
    """The same Whisper writes the same; an ear writes down what it hears."""
    suite, listening = str(world / "speech.jsonl"), ossicle.load(ear)
    sounds: list[AudioSource] = [world / f"{number}.wav" for number in range(len(SAID))]
    for asr, written, said in (
        (str(world / "whisper"), listening.transcribe(sounds), str(world / "whisper")),
        (
            ear,
            listening.transcribe_audio_tokens(sounds),
            f"the ear {ear} ({checkpoint.fingerprint_model(listening.connector)})",
        ),
    ):
        assert main(["eval", ear, "--suite", suite, "--asr", asr]) == 0
        report = read_report(Path("report.json"))
        assert [item.transcript for item in report.items] == written
        assert report.about["ASR model of the cascade"] == said
    Path("empty").mkdir()
    assert "empty" in refused(1, "eval", ear, "--suite", suite, "--asr", "empty")


def test_a_report_that_cannot_be_written_costs_no_answers(
    ear: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    argv = ["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "reports/full.json"]
    with monkeypatch.context() as patch:
        patch.setattr("ossicle.evaluation.report.write._write_to_disk", full)
        assert main(argv) == 1
    assert "full.json cannot be written: No space left" in capsys.readouterr().err
    assert Path("reports/.full.json.answers").read_text().count("answering audio") == len(SAID)
    assert main(argv) == 0
    assert sorted(path.name for path in Path("reports").iterdir()) == ["full.html", "full.json"]


def test_suites_that_cannot_be_used(refused: Callable[..., str], ear: str, world: Path) -> None:
    assert "nowhere.jsonl" in refused(1, "eval", ear, "--suite", "nowhere.jsonl")
    Path("bad.jsonl").write_text('{"audio": "a.wav"}\n')
    assert "bad.jsonl:1" in refused(1, "eval", ear, "--suite", "bad.jsonl")
    Path("bad.parquet").write_text("no table")
    assert "bad.parquet" in refused(1, "eval", ear, "--suite", "bad.parquet")
    suite = str(world / "speech.jsonl")
    assert "batch_size is 0" in refused(2, "eval", ear, "--suite", suite, "--batch-size", "0")
    assert not Path("report.json").exists()


# demo


@pytest.fixture
def pocket(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pocket world of tiny models in place of the embedded one, without a shipped ear."""
    pocket = tmp_path / "embedded"
    for name in ("whisper", "llm"):
        shutil.copytree(world / name, pocket / name)
    rows: list[dict[str, object]] = [
        {
            "id": f"{number}",
            "audio": {"bytes": (world / f"{number}.wav").read_bytes(), "path": f"{number}.wav"},
            "text": text,
            "instruction": "please" if number % 2 else None,
            "answer": "yes",
            "group": "unseen",
            "skill": "none",
            "voice": "noise",
        }
        for number, text in enumerate(SAID)
    ]
    write_table(pocket / "suite.parquet", rows)
    write_table(pocket / "speech.parquet", rows)
    recipe = "out = 'runs/long'\nconnector = {n_queries = 32}\ntrain = {n_steps = 9, batch_size = 2}\n"
    (pocket / "recipe.toml").write_text(recipe)
    monkeypatch.setattr(model_files, "POCKET_DIR", pocket)
    return pocket


def test_the_demo_distils_evaluates_and_answers_and_goes_on_where_it_was(
    pocket: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossicle import demo

    monkeypatch.setattr(
        demo, "count_steps_within", lambda run, seconds: min(5, count_steps_within(run, seconds))
    )
    assert main(["demo", "--minutes", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "text ceiling" in out
    assert "no pocket/ear" in out
    assert "said:" in out
    report = json.loads(Path("runs/pocket/report.json").read_text())
    assert (report["suite"], report["n"]) == ("pocket", len(SAID))
    assert {"unseen"} == report["groups"].keys()
    assert Path("runs/pocket/report.html").exists()
    assert not Path("runs/pocket/report-shipped.json").exists()
    assert "| All items | 4 |" in Path("runs/pocket/ear/README.md").read_text()
    assert main(["chat", "runs/pocket", "runs/pocket/question.wav", "--max-new-tokens", "3"]) == 0

    shutil.copytree("runs/pocket/ear", pocket / "ear")
    assert main(["demo", "--minutes", "2"]) == 0
    out = capsys.readouterr().out
    assert "holds a finished ear" in out
    shipped = json.loads(Path("runs/pocket/report-shipped.json").read_text())
    assert [item["ear_answer"] for item in shipped["items"]] == [i["ear_answer"] for i in report["items"]]
    assert "shipped" in shipped["about"]["ear"]
    assert main(["chat", "pocket/ear", "runs/pocket/question.wav", "--max-new-tokens", "3"]) == 0


def test_the_demo_touches_no_run_of_other_settings(pocket: Path, refused: Callable[..., str]) -> None:
    out = Path("mine")
    out.mkdir()
    (out / "recipe.toml").write_text("out = 'mine'\n")
    assert "other settings" in refused(2, "demo", "--out", "mine")
    assert "--minutes is 0" in refused(2, "demo", "--minutes", "0")
    assert files(out) == {"recipe.toml"}


# What the package carries


def test_the_recipes_can_be_used() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    pocket = load_recipe(recipes / "pocket.toml")
    assert pocket == load_recipe(model_files.POCKET_DIR / "recipe.toml")
    assert pocket.base.llm == "pocket/llm"
    for path in recipes.glob("*.toml"):
        assert load_recipe(path).out.startswith("runs/")


def test_a_run_is_loaded_only_by_its_own_name(ear: str) -> None:
    with pytest.raises(ossicle.CheckpointError, match="is not an ear"):
        checkpoint.load(Path(ear).parent)
