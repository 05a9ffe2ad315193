"""Crafted and damaged files are refused at little cost, and the fuzzer keeps what it finds."""

import contextlib
import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.security import audio_bombs, audio_files, containers, fuzz, fuzz_files, fuzz_sources
from ossicle.audio import containers as audio_containers
from ossicle.audio.waveform import load_audio
from ossicle.errors import AudioError
from ossicle.serving.request_body import RequestLimits


@pytest.mark.parametrize("name", audio_bombs.BOMBS)
def test_files_that_ask_for_too_much_are_refused_and_cost_little(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_containers, "MAX_CHUNKS", 1 << 14)  # the same, and faster
    monkeypatch.setattr(fuzz, "MAX_CPU_S", float("inf"))
    monkeypatch.setattr(fuzz, "LIMITS", RequestLimits())
    assert fuzz.run_input(fuzz.FuzzInput("sound", audio_bombs.BOMBS[name]())) == ("sound refused", None)


def test_sound_in_another_file_is_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker.wav"
    soundfile.write(marker, fuzz.SAMPLES, 16_000)
    for data in audio_bombs.build_references(str(marker), "http://127.0.0.1:9/x.wav"):
        with pytest.raises(AudioError, match="not audio that can be read"):
            load_audio(data)


def test_eight_channels_decode_alike_with_either_decoder() -> None:
    """PyAV 18.1 reads beyond a planar frame of eight channels, which crashes the process."""
    file = io.BytesIO()
    soundfile.write(file, np.stack([fuzz.SAMPLES] * 8, axis=1), 48_000, format="FLAC")
    samples = load_audio(file.getvalue())
    np.testing.assert_array_equal(load_audio(audio_bombs.remove_flac_length(file.getvalue())), samples)


@pytest.mark.parametrize(("rate", "n_channels"), [(999, 1), (48_000, 17), (1_000_000, 1)])
def test_absurd_sample_rates_and_channel_counts_are_refused(rate: int, n_channels: int) -> None:
    data = audio_files.build_wav(bytes(range(250)) * n_channels, rate=rate, n_channels=n_channels)
    with pytest.raises(
        AudioError, match=rf"{n_channels} channel\(s\) at {rate} Hz; expected at least 1000 Hz"
    ):
        load_audio(data)


@pytest.mark.parametrize("n_each", [31, 32])
def test_packets_of_less_than_two_milliseconds_are_refused(n_each: int) -> None:
    data = containers.build_mkv(containers.pack_block(b"\1\2" * n_each) * 1_100)
    with contextlib.nullcontext() if n_each == 32 else pytest.raises(AudioError, match="less than 2 ms"):
        assert len(load_audio(data)) == 32 * 1_100


# Starlette leaves the open file of a form that breaks off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_inputs_are_read_or_refused() -> None:
    corpus = fuzz.Corpus()
    outcomes = [fuzz.run_input(corpus.build_input(0, number)) for number in range(400)]
    assert {fault for _, fault in outcomes} == {None}
    assert {outcome for outcome, _ in outcomes} == {
        "sound read",
        "sound refused",
        "json read",
        "json refused",
        "form read",
        "form refused",
    }


def test_damaged_sources_and_suites_are_read_or_refused(tmp_path: Path) -> None:
    files = fuzz_sources.build_files()
    for kind, content in files.items():
        assert fuzz_sources.read_input(kind, content, tmp_path) == f"{kind} read"
    for number in range(150):
        fuzz_sources.read_input(*fuzz_sources.build_input(files, 0, number), tmp_path)


def test_damaged_recipes_and_models_are_read_or_refused(tmp_path: Path) -> None:
    for kind in fuzz_files.KINDS:
        path = fuzz_files.list_files(kind)[0]
        assert fuzz_files.read_input(f"{kind}/{path.name}", path.read_bytes(), tmp_path).endswith(" read")
    for number in range(12):
        fuzz_files.read_input(*fuzz_files.build_input(fuzz_files.KINDS, 0, number), tmp_path)


def test_findings_are_kept_with_their_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, reader = multiprocessing.Pipe(duplex=False)
    for message in ((5, "json read", None), (6, "sound error", "KeyError: 7")):
        reader.send(message)
    reader.close()

    class EndedProcess:
        exitcode = -11

        def join(self) -> None: ...

    run = fuzz.FuzzRun(3, tmp_path / "found", next_number=5)
    run._follow(pipe, EndedProcess(), lambda: False)
    assert run.next_number == 8
    assert [line.partition(": ")[2] for line in run.findings] == [
        "KeyError: 7",
        "the process ended with -11",
    ]
    assert {file.name for file in run.folder.iterdir()} == {"3-6.form", "3-7.sound"}
    assert (run.folder / "3-7.sound").read_bytes() == run.corpus.build_input(3, 7).data
    assert fuzz.main(["--again", str(run.folder / "3-7.sound")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sound refused None"
