"""Whispers in CTranslate2's form are the same Whispers, and damaged ones are refused in one line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ctranslate2_files import (
    collect_variables,
    pack_string,
    save_as_ctranslate2,
    write_model_file,
)
from support.tiny_models import tiny_whisper
from torch.testing import assert_close
from transformers import WhisperConfig

from ossicle.backbones import ctranslate2_whisper, pretrained
from ossicle.backbones.fingerprints import fingerprint_decoder_vocabulary, fingerprint_model
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.transcription import transcribe_windows
from ossicle.errors import CheckpointError

CPU = torch.device("cpu")
INTEGER_TOLERANCE = 5e-3
"""Half a step of a row's largest weight, which is below 1.2: 1/127 in 8 bits, 1/1024 in 16."""


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return tiny_whisper()


@pytest.fixture
def folder(whisper: Whisper, tmp_path: Path) -> Path:
    return save_as_ctranslate2(whisper, tmp_path / "whisper")


def load(folder: Path) -> Whisper:
    return pretrained.load_whisper(str(folder), None, CPU)


def read_error(folder: Path, load: Callable[[Path], Any] = load) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_it_is_the_whisper_that_was_converted(whisper: Whisper, folder: Path) -> None:
    loaded = load(folder)
    assert_close(loaded.model.state_dict(), whisper.model.state_dict(), rtol=0, atol=0)
    assert loaded.model.proj_out.weight is loaded.model.model.decoder.embed_tokens.weight
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.tokenizer.get_vocab() == whisper.tokenizer.get_vocab()
    assert loaded.prompt == whisper.prompt
    assert fingerprint_model(loaded.model) == fingerprint_model(whisper.model)
    assert fingerprint_decoder_vocabulary(loaded) == fingerprint_decoder_vocabulary(whisper)
    sounds = [np.sin(np.arange(n) / (5 + i)).astype(np.float32) for i, n in enumerate((8_000, 20_000))]
    whisper.model.generation_config.suppress_tokens = [1, 2]
    whisper.model.generation_config.begin_suppress_tokens = [3, whisper.config.eos_token_id]
    loaded.model.generation_config.max_length = 16
    assert transcribe_windows(loaded, sounds, [None] * 2) == transcribe_windows(whisper, sounds, [None] * 2)


def test_output_embeddings_of_their_own_are_read(tmp_path: Path) -> None:
    whisper = tiny_whisper()
    whisper.model.proj_out.weight = torch.nn.Parameter(whisper.model.proj_out.weight + 1, requires_grad=False)
    whisper.config.tie_word_embeddings = False
    loaded = load(save_as_ctranslate2(whisper, tmp_path))
    assert not loaded.config.tie_word_embeddings
    assert_close(loaded.model.state_dict(), whisper.model.state_dict(), rtol=0, atol=0)


def test_its_settings_are_those_of_the_files(whisper: Whisper, folder: Path) -> None:
    loaded = load(folder)
    options = loaded.model.generation_config.to_dict()
    end = whisper.config.eos_token_id
    assert (options["suppress_tokens"], options["begin_suppress_tokens"]) == ([1, 2], [3, end])
    assert options["alignment_heads"] == [[0, 1]]
    assert options["max_length"] == whisper.config.max_target_positions
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (end, end)
    assert loaded.config.decoder_start_token_id == whisper.config.decoder_start_token_id
    assert not options["is_multilingual"]


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [("float16", 1e-3), ("bfloat16", 5e-3), ("int8", INTEGER_TOLERANCE), ("int16", INTEGER_TOLERANCE)],
)
def test_other_types_become_floating_point(
    whisper: Whisper, tmp_path: Path, form: str, tolerance: float
) -> None:
    loaded = load(save_as_ctranslate2(whisper, tmp_path, form))
    assert_close(loaded.model.state_dict(), whisper.model.state_dict(), rtol=0, atol=tolerance)
    again = load(tmp_path)
    assert fingerprint_model(loaded.model) == fingerprint_model(again.model)


def test_the_config_alone_has_the_sizes(whisper: Whisper, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    model = pretrained.build_meta_whisper(str(folder), None)
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        name: weight.shape for name, weight in whisper.model.state_dict().items()
    }
    assert all(weight.is_meta for weight in model.parameters())
    assert model.config.encoder_attention_heads == whisper.config.encoder_attention_heads


def test_heads_have_64_channels_where_the_file_does_not_say(tmp_path: Path) -> None:
    wide = tiny_whisper(d_model=128, n_heads=2)
    variables = {k: v for k, v in collect_variables(wide).items() if not k.endswith("num_heads")}
    save_as_ctranslate2(wide, tmp_path)
    (tmp_path / "model.bin").write_bytes(write_model_file(variables, {}))
    assert load(tmp_path).config.decoder_attention_heads == 2


def test_a_multilingual_whisper_has_languages_and_tasks() -> None:
    names = ("transcribe", "translate", "notimestamps", "startofprev")
    vocabulary = {f"<|{name}|>": id_ for id_, name in enumerate(("de", "es", *names), start=50_260)}
    config = WhisperConfig(vocab_size=51_866)
    options: Any = ctranslate2_whisper._build_generation_config(
        {"lang_ids": [50_260, 50_261]}, config, vocabulary
    )
    assert options.is_multilingual
    assert options.lang_to_id == {"<|de|>": 50_260, "<|es|>": 50_261}
    assert options.task_to_id == {"transcribe": 50_262, "translate": 50_263}
    assert (options.no_timestamps_token_id, options.prev_sot_token_id) == (50_264, 50_265)


def test_every_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.bin"
    content = path.read_bytes()
    lengths = [0, 1, 3, 4, 5, 15, 19, 23, 25, 60, *range(100, len(content), len(content) // 40)]
    for length in [*lengths, len(content) - 1]:
        path.write_bytes(content[:length])
        message = read_error(folder, ctranslate2_whisper.read_config)
        assert "damaged" in message or "cannot be read" in message or "not a model file" in message
        assert "model.bin" in message
    path.write_bytes(content + b"more")
    assert "it ends at byte" in read_error(folder, ctranslate2_whisper.read_config)


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


def test_a_huge_size_reserves_no_memory(folder: Path) -> None:
    name = pack_string("encoder/conv1/bias")
    damage(
        folder / "model.bin",
        name + struct.pack("<BI", 1, 32),
        name + struct.pack("<BI", 1, 4_000_000_000),
    )
    assert "encoder/conv1/bias has 128 bytes, but its shape is (4000000000,)" in read_error(folder)
    header = struct.pack("<I", 6) + pack_string("WhisperSpec") + struct.pack("<II", 3, 4_000_000_000)
    (folder / "model.bin").write_bytes(header)
    assert "damaged" in read_error(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x02}q\x00.", r"is not a model file of CTranslate2 (it begins with b'\x80\x02}q')"),
        (b"GGUF\x03\0\0\0", "is not a model file of CTranslate2 (it begins with b'GGUF')"),
        (write_model_file({}, {}, version=5), "expected one of binary version 6"),
        (
            write_model_file({}, {}, spec="TransformerSpec"),
            "a 'TransformerSpec' of CTranslate2, expected a Whisper",
        ),
        (write_model_file({}, {}), "lacks decoder/embeddings/weight: expected a complete Whisper"),
        (write_model_file({}, {"a": "b"}), "a is to be the same as b, which is not there"),
        (
            struct.pack("<I", 6) + b"\x02\0\xff\0" + struct.pack("<III", 3, 0, 0),
            "a text before byte 8 is not UTF-8",
        ),
    ],
)
def test_other_files_are_refused(folder: Path, content: bytes, expected: str) -> None:
    (folder / "model.bin").write_bytes(content)
    assert expected in read_error(folder)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("encoder/layer_0/self_attention/linear_0/weight", torch.zeros(95, 32), "expected (96, 32)"),
        ("encoder/conv1/weight", torch.zeros(32, 80), "has encoder/conv1/weight of shape (32, 80), expected"),
        ("decoder/embeddings/weight", torch.zeros(0, 32), "shape (0, 32), expected 2 axes"),
        ("decoder/num_heads", torch.tensor(7), "has decoder/num_heads 7, expected a divisor of 32"),
        ("decoder/layer_0/ffn/linear_0/weight_scale", torch.zeros(3), "has 3 scales for the 64 rows"),
        ("encoder/layer_0/ffn/layer_norm/gamma", None, "has no layers"),
        ("encoder/conv2/bias", None, "lacks encoder/conv2/bias"),
        ("decoder/layer_1/attention/linear_2/bias", torch.zeros(()), "of shape (), expected (32,)"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    whisper: Whisper, folder: Path, name: str, values: torch.Tensor | None, expected: str
) -> None:
    variables = collect_variables(whisper)
    variables.pop(name, None)
    if values is not None:
        variables[name] = values.to(torch.int16) if name.endswith("heads") else values
    (folder / "model.bin").write_bytes(write_model_file(variables, {}))
    assert expected in read_error(folder)


def test_a_vocabulary_without_a_tokenizer_is_not_enough(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json, and its vocabulary alone cannot encode text" in read_error(folder)
    assert "has no tokenizer.json" in read_error(
        folder, lambda path: pretrained.load_tokenizer(str(path), None)
    )


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be loaded" in read_error(folder)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("{", "cannot be read"),
        ("[]", "has no list of token ids below"),
        (json.dumps({"suppress_ids": [10**9]}), "under 'suppress_ids'"),
        (json.dumps({"lang_ids": "de"}), "under 'lang_ids'"),
        (json.dumps({"suppress_ids_begin": [1]}), "tokenizer.json is not the tokenizer of"),
    ],
)
def test_a_damaged_config_is_refused(folder: Path, table: str, expected: str) -> None:
    (folder / "config.json").write_text(table)
    assert expected in read_error(folder)


def test_a_whisper_is_no_llm(folder: Path) -> None:
    message = read_error(folder, lambda path: pretrained.load_llm(str(path), None, CPU))
    assert "expected a causal LM" in message
