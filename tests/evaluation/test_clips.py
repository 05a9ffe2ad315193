"""The clips of a report: which are chosen, how they are played, which words were misheard."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.reports import HALF_SECOND_TONE, ParsedPage, build_item_result, build_mixed_report

from ossicle.audio.waveform import AudioSource, load_audio
from ossicle.evaluation import (
    Report,
)
from ossicle.evaluation.report.clips import build_player, choose_clips, compare_words
from ossicle.evaluation.report.page import render_report


def test_clips_are_chosen_by_a_fixed_rule() -> None:
    report = build_mixed_report(400)
    clips = choose_clips(report.items)
    assert len(clips) == 12
    assert sum(not item.ear_correct for item in clips) == 4
    assert {item.group for item in clips} == {"seen voices", "unseen voices"}
    assert any(item.instruction for item in clips)
    assert clips == choose_clips(report.items[::-1])[::-1]
    all_right = tuple(build_item_result(i) for i in range(20))
    assert len(choose_clips(all_right)) == 12
    all_wrong = tuple(build_item_result(i, ear=False) for i in range(20))
    assert len(choose_clips(all_wrong)) == 12
    assert choose_clips(all_right[:3]) == all_right[:3]


def test_a_sentence_is_repeated_only_if_there_is_no_other() -> None:
    items = tuple(build_item_result(i, text="often" if i % 10 else f"rare {i}") for i in range(110))
    assert sum(item.text == "often" for item in choose_clips(items)) == 1


def encode(format: str, samples: np.ndarray = HALF_SECOND_TONE, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["wav", "aiff", "ogg", "array", "array with rate", "path"])
def test_sound_is_converted_to_wav_as_the_ear_hears_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.wav").write_bytes(encode("WAV", rate=22_050))
    sources: dict[str, AudioSource] = {
        "array": HALF_SECOND_TONE,
        "array with rate": (HALF_SECOND_TONE, 8_000),
        "path": tmp_path / "a.wav",
    }
    source = sources[kind] if kind in sources else encode(kind.upper())
    uri = build_player(source).uri
    assert uri is not None
    head, _, body = uri.partition(",")
    assert head == "data:audio/wav;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(body)))
    assert rate == 16_000
    np.testing.assert_allclose(samples, load_audio(source), atol=2**-15)


@pytest.mark.parametrize(("kind", "mime_type"), [("FLAC", "audio/flac"), ("MP3", "audio/mpeg")])
def test_small_files_that_browsers_play_are_unchanged(kind: str, mime_type: str) -> None:
    sound = encode(kind)
    assert build_player(sound).uri == f"data:{mime_type};base64,{base64.b64encode(sound).decode()}"


def test_long_sound_is_cut_with_a_note() -> None:
    cut = build_player(np.tile(HALF_SECOND_TONE, 90))
    assert cut.note == "The first 30 of 45 seconds."
    assert cut.uri is not None
    assert len(base64.b64decode(cut.uri.partition(",")[2])) == 30 * 16_000 * 2 + 44


def test_missing_sound_leaves_a_note(tmp_path: Path) -> None:
    page = ParsedPage(
        render_report(
            Report(
                suite="s",
                items=(build_item_result(1, audio=tmp_path / "gone.wav"), build_item_result(2, audio=None)),
            )
        )
    )
    assert page.count("audio") == 0
    assert "can no longer be read" in page.text
    assert "not stored with this report" in page.text


def test_wrong_and_missing_words_are_flagged() -> None:
    def flag_words(text: str, transcript: str) -> str:
        return " ".join(
            f"-{word.text}" if word.is_missing else f"!{word.text}" if word.is_wrong else word.text
            for word in compare_words(text, transcript)
        )

    assert flag_words("Say the word, please.", "say a word") == "say !a word -please."
    assert flag_words("one", "one two") == "one !two"
    assert flag_words("one", "") == "-one"
