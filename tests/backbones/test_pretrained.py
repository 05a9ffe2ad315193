"""Unusable backbones are refused in one line, quickly and without output from transformers."""

import codecs
import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from support.tiny_families import save_tiny_llm
from support.tiny_models import save_tiny_backbones, tiny_llama
from support.tiny_tokenizers import tiny_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperModel,
)
from transformers.utils import logging

from ossicle.backbones import model_files, pretrained
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.rust_panic import silence_rust_panics
from ossicle.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    save_tiny_backbones(folder)
    return folder


@pytest.fixture
def whisper(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "whisper", tmp_path / "whisper"))


@pytest.fixture
def llm(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "llm", tmp_path / "llm"))


def read_error(load: Callable, name: object, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(str(name), revision, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_a_folder_is_loaded_silently_frozen_and_completely(
    whisper: Path, llm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    whisper_loaded = pretrained.load_whisper(str(whisper), "any-revision", CPU)
    model, tokenizer = pretrained.load_llm(str(llm), None, CPU)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert whisper_loaded.window_samples == 6 * 16_000
    assert tokenizer.get_vocab() == tiny_tokenizer("llama").get_vocab()
    for weight in (*whisper_loaded.model.parameters(), *model.parameters()):
        assert not weight.requires_grad
        assert weight.dtype == torch.float32


def test_half_precision_weights_become_float32_on_a_cpu(llm: Path) -> None:
    tiny_llama().to(torch.bfloat16).save_pretrained(llm)
    model, _ = pretrained.load_llm(str(llm), None, CPU)
    assert model.dtype == torch.float32
    assert pretrained.get_frozen_dtype(torch.device("cuda")) == torch.bfloat16


def test_the_pocket_llm_reads_embeddings_in_every_precision() -> None:
    """Its first tokens are all alike, so that rounding moves its states as far as the way between them."""
    for dtype in (torch.float32, torch.bfloat16):
        llm, _ = pretrained.load_llm("pocket/llm", None, CPU, dtype=dtype)
        assert llm.dtype == dtype


def test_an_llm_whose_values_the_dtype_does_not_hold_is_refused(llm: Path) -> None:
    large = tiny_llama()
    with torch.no_grad():
        get_input_embeddings(large).weight.fill_(1e30)
    large.save_pretrained(llm)
    with pytest.raises(CheckpointError, match="not finite in float16"):
        pretrained.load_llm(str(llm), None, CPU, dtype=torch.float16)


def test_silencing_restores_the_previous_settings() -> None:
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        with model_files.silence_transformers(), model_files.silence_transformers(show_progress=True):
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        with pytest.raises(KeyError), model_files.silence_transformers():
            raise KeyError
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)


@pytest.mark.parametrize(
    "name",
    [
        "/nowhere/model",
        "./model",
        "../model",
        "~/no-such-model",
        "a/b/c",
        "pocket/nothing",
        "",
        "hello there",
    ],
)
def test_a_missing_folder_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "is_hub_reachable", lambda: pytest.fail("asked the hub"))
    for load in (pretrained.load_whisper, pretrained.load_llm):
        assert f"{name!r}: there is no such folder, expected" in read_error(load, name)


def test_a_name_inside_an_existing_folder_is_meant_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "is_hub_reachable", lambda: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    assert "there is no such folder" in read_error(pretrained.load_llm, "models/llama")
    assert "there is no such file" in read_error(pretrained.load_llm, "llama-8b.Q4_K_M.gguf")


def test_an_unreachable_hub_is_reported_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = read_error(pretrained.load_llm, "nobody/no-model-of-ours")
    assert (
        "there is no such folder, and no model of that name in the local cache; http://127.0.0.1:9 cannot be"
        in message
    )
    assert "check the path" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in read_error(pretrained.load_whisper, "nobody/no-model-of-ours")


def test_a_folder_without_a_model_is_refused(tmp_path: Path, llm: Path) -> None:
    assert "a folder without a config.json" in read_error(pretrained.load_llm, tmp_path)
    (llm / "config.json").write_text("{ not json")
    assert "cannot be loaded" in read_error(pretrained.load_llm, llm)
    (llm / "config.json").write_text('{"model_type": "no such type"}')
    assert "cannot be loaded" in read_error(pretrained.load_llm, llm)


def test_an_encoder_that_is_no_whisper_is_refused(llm: Path) -> None:
    assert "is of type 'llama', expected a Whisper" in read_error(pretrained.load_whisper, llm)


def bert(kind: Callable) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 0.2,  # or its attention hardly changes anything
    }
    return kind(BertConfig(vocab_size=640, **sizes))


def test_an_llm_that_is_no_causal_lm_is_refused(whisper: Path, tmp_path: Path) -> None:
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=99, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    t5.save_pretrained(tmp_path / "t5")
    bert(BertForMaskedLM).save_pretrained(tmp_path / "bert")
    assert "is of type 't5', expected a causal LM" in read_error(pretrained.load_llm, tmp_path / "t5")
    assert "is a BertForMaskedLM, expected a causal LM" in read_error(pretrained.load_llm, tmp_path / "bert")
    assert "is a WhisperForConditionalGeneration, expected a causal LM" in read_error(
        pretrained.load_llm, whisper
    )


def test_an_llm_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    with model_files.silence_transformers():
        bert(BertLMHeadModel).save_pretrained(tmp_path)
    tiny_tokenizer("qwen2").save_pretrained(tmp_path)
    assert "reads in both directions, expected a causal LM" in read_error(pretrained.load_llm, tmp_path)


def test_missing_weights_are_refused(llm: Path, whisper: Path, saved: Path) -> None:
    tiny_llama().model.save_pretrained(llm)  # the body without its head
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    assert "lacks 1 of the weights of a LlamaForCausalLM, such as lm_head.weight" in read_error(
        pretrained.load_llm, llm
    )
    (llm / "config.json").write_text(json.dumps(config))
    assert f"is a {LlamaModel.__name__}, expected a causal LM" in read_error(pretrained.load_llm, llm)
    encoder_only = WhisperModel.from_pretrained(saved / "whisper").encoder
    encoder_only.save_pretrained(whisper)
    shutil.copy(saved / "whisper" / "config.json", whisper)
    assert "of the weights of a WhisperForConditionalGeneration" in read_error(
        pretrained.load_whisper, whisper
    )


def test_weights_that_are_cut_short_or_of_another_shape_are_refused(llm: Path) -> None:
    weights = llm / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in read_error(pretrained.load_llm, llm)
    weights.write_bytes(b"")
    assert "is damaged" in read_error(pretrained.load_llm, llm)
    weights.write_bytes(whole)
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    read_error(pretrained.load_llm, llm)
    weights.unlink()
    assert "cannot be loaded" in read_error(pretrained.load_llm, llm)


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("llm", {"num_hidden_layers": 2**31}, "at most 10000"),
        ("llm", {"num_hidden_layers": 10**400}, "at most 10000"),
        ("llm", {"text_config": {"num_local_experts": 2**31}}, "at most 10000"),
        ("whisper", {"encoder_layers": 2**40}, "at most 10000"),
        ("whisper", {"decoder_layers": 2**31}, "at most 10000"),
        ("whisper", {"dropout": 1e308}, "a rate from 0 to 1"),
        ("whisper", {"activation_dropout": float("inf")}, "a rate from 0 to 1"),
        ("whisper", {"encoder_layerdrop": float("nan")}, "a rate from 0 to 1"),
        ("llm", {"attention_dropout": 2**64}, "a rate from 0 to 1"),
    ],
)
def test_numbers_that_no_model_has_are_refused_before_it_is_built(
    saved: Path, tmp_path: Path, kind: str, numbers: dict[str, Any], expected: str
) -> None:
    shutil.copytree(saved / kind, tmp_path / "model")
    config = json.loads((saved / kind / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **numbers}))
    load = pretrained.load_llm if kind == "llm" else pretrained.load_whisper
    assert f"expected {expected}" in read_error(load, tmp_path / "model")


def test_pickles_are_refused(llm: Path) -> None:
    (llm / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), llm / "pytorch_model.bin")
    assert "safetensors" in read_error(pretrained.load_llm, llm)


def test_code_in_a_folder_is_refused_without_a_prompt(llm: Path) -> None:
    config = {
        "model_type": "ours",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (llm / "config.json").write_text(json.dumps(config))
    (llm / "code.py").write_text("raise SystemExit('was run')")
    assert "needs code from its own folder, which ossicle does not run" in read_error(
        pretrained.load_llm, llm
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "phi3", "mistral"])
def test_an_llm_without_a_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    folder = Path(save_tiny_llm(kind, tmp_path / kind))
    for path in (*folder.glob("tokenizer*"), *folder.glob("chat_template*")):
        path.unlink()
    message = read_error(pretrained.load_llm, folder)
    assert "tokenizer" in message


def test_a_whisper_without_a_tokenizer_is_refused(whisper: Path) -> None:
    for path in whisper.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in read_error(pretrained.load_whisper, whisper)


def test_control_tokens_of_an_old_whisper_are_no_words(whisper: Path) -> None:
    path = whisper / "tokenizer.json"
    published = pretrained.load_whisper(str(whisper), None, CPU).tokenizer
    table = json.loads(path.read_text())
    for token in table["added_tokens"][1:]:
        token.update(special=False, normalized=True)
    path.write_text(json.dumps(table))
    old = pretrained.load_whisper(str(whisper), None, CPU).tokenizer
    assert old.get_vocab() == published.get_vocab()
    assert old.added_tokens_decoder == published.added_tokens_decoder
    ids = old.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>", "a", "<|endoftext|>"])
    assert str(old.decode(ids, skip_special_tokens=True)).strip() == "a"


def test_a_tokenizer_without_a_chat_template_is_refused(llm: Path) -> None:
    (llm / "chat_template.jinja").unlink()
    assert "has no chat template: use the chat version of the model" in read_error(pretrained.load_llm, llm)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["pre_tokenizer"].update(type="Sometimes"),
        lambda table: table["model"].update(type="Unknown"),
        lambda table: table["model"].update(merges=[["a", "no such token"]]),
        lambda table: table["model"].update(merges=7),
        lambda table: table.update(normalizer={"type": "Replace"}),
        lambda table: table.update(decoder=[]),
        lambda table: table.pop("model"),
        lambda table: table.update(added_tokens=[{"id": 0}]),
        lambda table: table["model"].update(vocab={"a": -1}),
    ],
)
def test_a_tokenizer_that_the_library_cannot_read_is_refused_in_one_line(
    llm: Path, change: Callable[[dict], object]
) -> None:
    path = llm / "tokenizer.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    assert f"LLM {str(llm)!r}" in read_error(pretrained.load_llm, llm)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"\xef\xbb\xbf{", b"null"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_file_is_refused_in_one_line(llm: Path, name: str, content: bytes) -> None:
    (llm / name).write_bytes(content)
    assert f"LLM {str(llm)!r}" in read_error(pretrained.load_llm, llm)


def test_a_failed_assertion_of_the_tokenizers_library_is_one_line(
    llm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = llm / "tokenizer.json"
    table = json.loads(path.read_text())
    table["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps(table))
    assert "its tokenizer cannot be loaded: Precompiled" in read_error(pretrained.load_llm, llm)
    assert capfd.readouterr() == ("", "")


def test_what_others_write_while_a_tokenizer_is_loaded_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with silence_rust_panics():
        os.write(2, b"a warning\n")
    with contextlib.suppress(KeyError), silence_rust_panics():
        os.write(2, b"another\n")
        raise KeyError
    assert capfd.readouterr().err == "a warning\nanother\n"


def test_files_with_a_byte_order_mark_are_read(llm: Path, whisper: Path) -> None:
    expected = pretrained.load_llm(str(llm), None, CPU)[1]
    for path in [*llm.iterdir(), *whisper.iterdir()]:
        if path.suffix in (".json", ".jinja"):
            path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    model, tokenizer = pretrained.load_llm(str(llm), None, CPU)
    assert tokenizer.name_or_path == str(llm)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer.get_chat_template() == expected.get_chat_template()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert pretrained.load_whisper(str(whisper), None, CPU).prompt.transcribe is None


def test_a_tokenizer_without_a_token_for_unknown_words_is_refused(llm: Path) -> None:
    table = json.loads((llm / "tokenizer.json").read_text())
    table["model"] = {"type": "WordLevel", "vocab": {"hello": 0, "[UNK]": 1}, "unk_token": "[NONE]"}
    (llm / "tokenizer.json").write_text(json.dumps(table))
    assert "has a tokenizer that cannot encode all text" in read_error(pretrained.load_llm, llm)


TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def keep_templates(llm: Path, **files: object) -> None:
    """Replaces all chat templates of a folder by the given files."""
    (llm / "chat_template.jinja").unlink()
    for name, content in files.items():
        path = llm / name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template_json": {"chat_template": TEMPLATE}},
        {"chat_template_json": {"chat_template": {"default": TEMPLATE, "tool_use": "tools"}}},
        {"chat_template_json": {"chat_template": [{"name": "default", "template": TEMPLATE}]}},
        {"chat_template_json": {"default": TEMPLATE}},
        {"chat_template_json": TEMPLATE.join('""')},
        {"chat_template_json": "\ufeff" + json.dumps({"chat_template": TEMPLATE})},
        {"chat_template_jinja": TEMPLATE},
        {"chat_template_jinja": "\ufeff" + TEMPLATE},
        {"additional_chat_templates__chat_jinja": TEMPLATE},
        {"additional_chat_templates__chat_jinja": TEMPLATE, "additional_chat_templates__rag_jinja": "rag"},
        {"additional_chat_templates__tool_use_jinja": TEMPLATE},
    ],
    ids=str,
)
def test_a_chat_template_is_found_wherever_a_folder_keeps_it(llm: Path, files: dict[str, object]) -> None:
    keep_templates(llm, **files)
    _, tokenizer = pretrained.load_llm(str(llm), None, CPU)
    assert tokenizer.get_chat_template() == TEMPLATE


def test_several_chat_templates_and_damaged_ones_are_refused(llm: Path) -> None:
    keep_templates(llm, additional_chat_templates__a_jinja=TEMPLATE, additional_chat_templates__b_jinja="b")
    assert "has several chat templates (a, b), expected one of the name default" in read_error(
        pretrained.load_llm, llm
    )
    shutil.rmtree(llm / "additional_chat_templates")
    for content in ("{", "", "\0", '{"chat_template": 3}', "[]", "null"):
        (llm / "chat_template.json").write_text(content)
        assert "template" in read_error(pretrained.load_llm, llm)


@pytest.mark.parametrize("architectures", [[None], [3], [{}], 3, {}, "LlamaForCausalLM"])
def test_architectures_that_are_no_names_are_no_obstacle_or_one_line(
    llm: Path, architectures: object
) -> None:
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    with contextlib.suppress(CheckpointError):
        pretrained.load_llm(str(llm), None, CPU)
