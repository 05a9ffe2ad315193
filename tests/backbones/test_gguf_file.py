"""An LLM in a GGUF file is the same LLM, and an unusable file is refused in one line."""

import builtins
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gguf_files import build_gguf_llm, save_as_gguf
from support.tiny_models import save_tiny_backbones, tiny_llama
from support.tiny_tokenizers import tiny_tokenizer
from torch.testing import assert_close

from ossicle import checkpoint
from ossicle.backbones import gguf_file, pretrained
from ossicle.backbones.causal_lm import get_eos_ids, get_input_embeddings
from ossicle.backbones.embedding_table import open_embedding_table
from ossicle.backbones.fingerprints import fingerprint_model, fingerprint_tokenizer
from ossicle.config import BaseSettings, ConnectorSettings, PromptSettings
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError, ConfigError
from ossicle.evaluation.reference_llm import load_reference_llm

CPU = torch.device("cpu")
Q8_TOLERANCE = 2e-2
"""Half a step of the largest weights, below 1.2, in 8 bits."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_as_gguf(tmp_path / "model.gguf")


def read_error(path: object, load: Callable[[str], Any] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        (load or (lambda name: pretrained.load_llm(name, None, CPU)))(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_it_is_the_llm_that_was_converted(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected, own = build_gguf_llm(), tiny_tokenizer("llama")
    capfd.readouterr()
    llm, tokenizer = pretrained.load_llm(str(path), None, CPU)
    assert capfd.readouterr() == ("", "")
    assert_close(llm.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert fingerprint_model(llm) == fingerprint_model(expected)
    assert fingerprint_tokenizer(tokenizer) == fingerprint_tokenizer(own)
    for text in ("Hello there, how are you?", "1 + 22 = 23\n\n  <|eot_id|>it's"):
        assert tokenizer(text)["input_ids"] == own(text, add_special_tokens=False)["input_ids"]
    turn = [{"role": "user", "content": "Why?"}]
    assert tokenizer.apply_chat_template(turn, tokenize=False) == own.apply_chat_template(
        turn, tokenize=False
    )
    assert own.eos_token_id in get_eos_ids(llm, tokenizer)
    assert not getattr(llm, "is_quantized", False)
    assert not any(weight.requires_grad for weight in llm.parameters())


@pytest.mark.parametrize("form", ["Q8_0", "BF16"])
def test_quantized_weights_become_floating_point(tmp_path: Path, form: str) -> None:
    path = save_as_gguf(tmp_path / "model.gguf", form=form)
    llm, _ = pretrained.load_llm(str(path), None, CPU)
    assert_close(llm.state_dict(), build_gguf_llm().state_dict(), rtol=0, atol=Q8_TOLERANCE)
    again, _ = pretrained.load_llm(str(path), None, CPU)
    assert fingerprint_model(llm) == fingerprint_model(again)
    meta_llm = pretrained.build_meta_llm(str(path), None)
    table = open_embedding_table(meta_llm, str(path), None)
    embeddings = get_input_embeddings(llm).weight
    assert torch.equal(table([5, 0, 5]), embeddings[[5, 0, 5]])
    assert torch.equal(table.read_all(), embeddings)


def test_the_config_alone_has_the_shapes(path: Path) -> None:
    llm = pretrained.build_meta_llm(str(path), None)
    assert {name: weight.shape for name, weight in llm.state_dict().items()} == {
        name: weight.shape for name, weight in build_gguf_llm().state_dict().items()
    }
    assert all(weight.is_meta for weight in llm.parameters())


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    tied = tiny_llama(d_model=64, tie_word_embeddings=True)
    llm, _ = pretrained.load_llm(str(save_as_gguf(tmp_path / "model.gguf", llm=tied)), None, CPU)
    head: Any = llm.get_output_embeddings()
    assert head.weight is get_input_embeddings(llm).weight


def test_long_vocabularies_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_LONG_ARRAY", 8)
    llm, tokenizer = pretrained.load_llm(str(path), None, CPU)
    assert_close(llm.state_dict(), build_gguf_llm().state_dict(), rtol=0, atol=0)
    assert llm.config.vocab_size == len(tokenizer) == len(tiny_tokenizer("llama"))


def test_files_next_to_it_are_not_read(path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "adapter_config.json"):
        (path.parent / name).write_text("{")
    llm, _ = pretrained.load_llm(str(path), None, CPU)
    assert_close(llm.state_dict(), build_gguf_llm().state_dict(), rtol=0, atol=0)


def test_a_name_without_an_ending_is_enough(path: Path) -> None:
    blob = path.rename(path.parent / "sha256-0123")
    assert pretrained.build_meta_llm(str(blob), None).config.num_hidden_layers == 2


def test_all_tokens_that_end_a_turn_end_an_answer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    ids = [tokenizer.get_vocab()[token] for token in ("<|eot_id|>", "<|start_header_id|>")]
    path = save_as_gguf(
        tmp_path / "model.gguf", tokenizer=tokenizer, **{"tokenizer_ggml.eom_token_id": ids[1]}
    )
    llm, loaded = pretrained.load_llm(str(path), None, CPU)
    assert set(get_eos_ids(llm, loaded)) == {*ids, tokenizer.eos_token_id}


def test_an_ear_on_a_gguf_is_saved_and_loaded(path: Path, tmp_path: Path) -> None:
    base = BaseSettings(encoder=save_tiny_backbones(tmp_path).encoder, llm=str(path))
    settings = EarSettings(
        base=base, prompt=PromptSettings(), connector=ConnectorSettings(form="query", n_queries=8)
    )
    ear = Ear.new(settings, device="cpu")
    checkpoint.save(ear, tmp_path / "ear")
    question = [{"role": "user", "content": "Why?"}]
    expected = ear.read_batch([question], max_new_tokens=4)
    assert (
        checkpoint.load(tmp_path / "ear", device="cpu").read_batch([question], max_new_tokens=4) == expected
    )
    hearing = checkpoint.load(tmp_path / "ear", device="cpu", with_llm=False)
    assert hearing.hear(torch.sin(torch.arange(8_000.0)).numpy()).shape[1] == 64


def test_the_reference_llm_is_the_same(path: Path) -> None:
    llm, tokenizer = load_reference_llm(BaseSettings(llm=str(path)))
    expected, own = pretrained.load_llm(str(path), None, llm.device)
    assert_close(llm.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert get_eos_ids(llm, tokenizer) == get_eos_ids(expected, own)


def test_every_truncated_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in [0, 1, 4, 7, 8, 23, 24, 40, 100, *range(200, len(content), len(content) // 25)]:
        path.write_bytes(content[:length])
        message = read_error(path, lambda name: pretrained.build_meta_llm(name, None))
        assert (
            "damaged or incomplete GGUF" in message or "cannot be read" in message or "not a GGUF" in message
        )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"without": "chat_template"},
            "has no chat template: use the chat version of the model, a GGUF with",
        ),
        ({"architecture": "nobodys-family"}, "architecture nobodys-family is not supported yet"),
        ({"without": "block_count"}, "with None layers of 'llama', expected an LLM"),
        ({"block_count": 10**9}, "with 1000000000 layers"),
        ({"feed_forward_length": 10**8}, "but its header describes a LlamaForCausalLM of"),
        ({"embedding_length": 10**8}, "but its header describes a LlamaForCausalLM of"),
        ({"without": "blk.1.ffn_up.weight"}, "but its header describes a LlamaForCausalLM of"),
        ({"split_count": 3}, "is one of 3 parts, expected one file"),
        ({"general_alignment": 0}, "its alignment is 0"),
    ],
)
def test_files_that_are_no_chat_llm_are_refused(tmp_path: Path, options: Any, expected: str) -> None:
    path = save_as_gguf(tmp_path / "model.gguf", **options)
    assert expected in read_error(path)


def write_header(n_tensors: int, n_values: int, *content: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + b"".join(content)


def pack_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HUGE = 2**63
NAME = pack_string(b"general.architecture") + struct.pack("<I", 8) + pack_string(b"llama")
TENSOR = pack_string(b"token_embd.weight")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04" * 9, r"is a file that is not a GGUF (it begins with b'PK\x03\x04')"),
        (write_header(0, 0, version=1), "is a GGUF of version 1, expected version 2 or 3"),
        (write_header(0, 0), "does not name its architecture"),
        (write_header(HUGE, HUGE), "damaged"),
        (write_header(0, 1, struct.pack("<Q", HUGE)), f"{HUGE} bytes are to follow byte 32"),
        (write_header(0, 1, pack_string(b"k"), struct.pack("<I", 13)), "k has a value of type 13"),
        (write_header(0, 1, pack_string(b"k"), struct.pack("<IIQ", 9, 9, 5)), "k has a value of type 9"),
        (write_header(0, 1, pack_string(b"k"), struct.pack("<IIQ", 9, 8, HUGE)), "damaged"),
        (write_header(0, 1, pack_string(b"k"), struct.pack("<IIQ", 9, 12, HUGE)), "damaged"),
        (write_header(0, 1, pack_string(b"\xff")), "a text before byte 33 is not UTF-8"),
        (write_header(1, 1, NAME, TENSOR, struct.pack("<I", HUGE >> 32)), "token_embd.weight has"),
        (write_header(1, 1, NAME, TENSOR, struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)), "damaged"),
        (write_header(1, 1, NAME, TENSOR, struct.pack("<IQIQ", 1, 8, 99, 0)), "in type 99, unknown"),
        (write_header(1, 1, NAME, TENSOR, struct.pack("<IQIQ", 1, 8, 8, 0)), "of a multiple of 32"),
        (write_header(1, 1, NAME, TENSOR, struct.pack("<IQIQ", 1, 8, 0, HUGE)), "damaged"),
    ],
)
def test_hostile_headers_reserve_no_memory(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert expected in read_error(path)


def test_a_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None if name == "accelerate" else builtins)
    assert read_error(path).endswith("is a GGUF file, which needs accelerate: pip install 'ossicle[gguf]'")


def test_it_is_not_quantized_again(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.llm_bits is 8, but the LLM .* is a GGUF file"):
        pretrained.load_llm(str(path), None, CPU, bits=8)


def test_other_places_are_named(path: Path) -> None:
    assert "there is no such file, expected a local folder, a GGUF file or a hub id" in read_error(
        path.parent / "absent.gguf"
    )
    assert "is a file, expected a local folder or a hub id" in read_error(
        path, lambda name: pretrained.load_whisper(name, None, CPU)
    )
