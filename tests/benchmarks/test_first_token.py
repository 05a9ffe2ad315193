"""The benchmark of the first token at toy size: every way answers, and the models' inputs are counted."""

import json

import pytest

from benchmarks import shapes
from benchmarks.serving import first_token


def test_every_way_answers_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--shape toy --seconds 1 3 --rounds 1 --no-pocket"
    result = first_token.main(flags.split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    shape = shapes.SHAPES["toy"]
    for row in result["lengths"]:
        ear, anchored, cascade, text, published = (
            row[way] for way in ("ear", "anchored", "cascade", "text", "published")
        )
        assert ear["llm_positions"] == text["llm_positions"] == cascade["llm_positions"]
        assert anchored["llm_positions"] == ear["llm_positions"]
        assert published["llm_positions"] == text["llm_positions"] - row["tokens"] + shape.n_decoder_positions
        assert (text["whisper_tokens"], ear["whisper_tokens"]) == (0, 0)
        assert cascade["whisper_tokens"] == row["tokens"]
        assert cascade["encoder_frames"] == published["encoder_frames"] == shape.n_encoder_positions
        assert text["gflop"] < ear["gflop"] < published["gflop"]
    short, long = (row["ear"] for row in result["lengths"])
    assert 2 * short["encoder_frames"] < long["encoder_frames"]
    assert set(result["ratios"]) == {
        f"{way} to {other}, {length} s"
        for way in ("ear", "anchored")
        for other in ("cascade", "published", "text")
        for length in (1, 3)
    }
    found_targets = {name: one["most"] for name, one in result["ratios"].items() if "most" in one}
    targets = {"cascade, 3 s": 0.5, "published, 3 s": 0.3}
    assert found_targets == {
        f"{way} to {name}": most for way in ("ear", "anchored") for name, most in targets.items()
    }


def test_questions_of_the_suite_have_the_requested_length() -> None:
    found = list(first_token.find_pocket_questions([0.5, 2.0]))
    assert [length for length, _, _ in found] == pytest.approx([0.5, 2.0], abs=0.1)
    for length, sound, text in found:
        assert len(sound) == round(16_000 * length)
        assert text.strip()
