"""Ears through transformers' own classes: Auto classes, processor, generate, pipeline, trust_remote_code."""

import base64
import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_models import save_tiny_backbones, tiny_ear
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.ear import Ear
from ossicle.errors import AudioError, CheckpointError, ConfigError, RequestError
from ossicle.evaluation.suite import load_suite
from ossicle.hf import OssicleConfig, OssicleForConditionalGeneration, OssicleProcessor

N_NEW = 12


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load("pocket/ear", device="cpu")


@pytest.fixture(scope="module")
def folder(ear: Ear, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded ear as it is saved today, and three questions as files."""
    folder = tmp_path_factory.mktemp("ear")
    ossicle.save(ear, folder / "ear")
    for number, item in enumerate(load_suite("pocket")[::300]):
        soundfile.write(folder / f"{number}.wav", load_audio(item.audio), SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForMultimodalLM.from_pretrained(folder / "ear", device_map="cpu")


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder / "ear")


def conversations(folder: Path, key: str = "audio") -> list[list[dict[str, Any]]]:
    """One sound; a sound and a text after a system message; two sounds after an answer; no sound."""
    sounds = [{"type": "audio", key: str(folder / f"{number}.wav")} for number in range(3)]
    text = {"type": "text", "text": "Answer in Spanish."}
    return [
        [{"role": "user", "content": sounds[:1]}],
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": [sounds[1], text]}],
        [
            {"role": "user", "content": sounds[2:]},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": [sounds[0], text]},
        ],
        [{"role": "user", "content": "What is the capital of Japan?"}],
    ]


def encode(processor: Any, messages: Any, **options: Any) -> Any:
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, **options
    )


def test_the_auto_classes_know_an_ear(folder: Path, model: Any, processor: Any) -> None:
    assert type(model) is OssicleForConditionalGeneration
    assert (
        type(AutoModel.from_pretrained(folder / "ear", device_map="cpu")) is OssicleForConditionalGeneration
    )
    assert type(processor) is OssicleProcessor
    config = AutoConfig.from_pretrained(folder / "ear")
    assert type(config) is OssicleConfig
    assert config.base["encoder"] == "pocket/whisper"
    assert config.settings.connector.form == "autoregressive"
    assert model.input_modalities == ["audio", "text"]
    assert model.dtype == torch.float32
    assert not model.training


@pytest.mark.parametrize("key", ["audio", "path", "url"])
def test_answers_are_those_of_chat_token_for_token(
    ear: Ear, folder: Path, model: Any, processor: Any, key: str
) -> None:
    for named, given in zip(conversations(folder, key), conversations(folder), strict=True):
        inputs = encode(processor, named)
        ids = model.generate(**inputs, max_new_tokens=N_NEW)
        assert ids.tolist() == ear.generate_ids_batch([given], max_new_tokens=N_NEW)
        answer = processor.batch_decode(ids, skip_special_tokens=True)[0]
        assert answer.strip() == ear.chat(given, max_new_tokens=N_NEW).strip()


def test_a_batch_is_padded_on_the_left_and_answers_as_each_alone(
    ear: Ear, folder: Path, model: Any, processor: Any
) -> None:
    inputs = encode(processor, conversations(folder))
    assert inputs["attention_mask"][:, -1].all()
    assert not inputs["attention_mask"].all()
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == len(inputs["n_windows"]) == 4
    ids = model.generate(**inputs, max_new_tokens=N_NEW)
    expected = ear.generate_ids_batch(conversations(folder), max_new_tokens=N_NEW)
    assert [row[: len(own)] for row, own in zip(ids.tolist(), expected, strict=True)] == expected
    answers = processor.post_process_multimodal_output(ids)
    assert answers == processor.batch_decode(ids, skip_special_tokens=True)


def test_long_sound_has_one_placeholder_and_several_windows(
    ear: Ear, folder: Path, model: Any, processor: Any
) -> None:
    whole = np.concatenate([load_audio(folder / f"{number}.wav") for number in (0, 1, 2, 0, 1)])
    messages = [{"role": "user", "content": [{"type": "audio", "audio": (whole, SAMPLE_RATE)}]}]
    inputs = encode(processor, messages)
    assert inputs["n_windows"].tolist() == [len(inputs["input_features"])] != [1]
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == 1
    features = [inputs[name] for name in ("input_features", "input_features_mask", "n_windows")]
    (tokens,) = model.get_audio_features(*features).pooler_output
    assert_close(tokens, ear.hear((whole, SAMPLE_RATE)), rtol=1e-4, atol=1e-4)
    ids = model.generate(**inputs, max_new_tokens=N_NEW)
    assert ids.tolist() == ear.generate_ids_batch([messages], max_new_tokens=N_NEW)


def test_rendered_text_with_sounds_is_the_same_prompt(folder: Path, processor: Any) -> None:
    messages = conversations(folder)[2]
    text = processor.apply_chat_template(messages)
    assert text.count(processor.audio_token) == 2
    assert processor.apply_chat_template([messages]) == [text]
    given = processor(text=text, audio=[str(folder / "2.wav"), load_audio(folder / "0.wav")])
    assert_close(dict(given), dict(encode(processor, messages)))


def test_logits_are_the_llms_at_the_heard_prompt(ear: Ear, folder: Path, model: Any, processor: Any) -> None:
    messages = conversations(folder)[1]
    logits = model(**encode(processor, messages)).logits
    (prompt,) = ear.build_prompts([messages])
    assert_close(logits, ear.llm(inputs_embeds=prompt.embeds[None]).logits, rtol=1e-4, atol=1e-4)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.has_ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.has_ended = True


def test_a_streamer_gets_the_new_tokens(folder: Path, model: Any, processor: Any) -> None:
    inputs, streamer = encode(processor, conversations(folder)[0]), Collector()
    ids = model.generate(**inputs, max_new_tokens=N_NEW, streamer=streamer)
    assert ids.tolist() == [streamer.ids]
    assert streamer.has_ended


def test_generation_configs_count(folder: Path, model: Any, processor: Any) -> None:
    inputs = encode(processor, conversations(folder)[0])
    assert model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=2)).shape == (1, 2)
    model.generation_config.max_new_tokens = 3
    assert model.generate(**inputs).shape == (1, 3)
    model.generation_config = GenerationConfig()


def test_the_pipeline_answers(ear: Ear, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe: Any = pipeline("any-to-any", model=str(folder / "ear"), device="cpu")
    assert "not supported" not in capfd.readouterr().err
    messages = conversations(folder)[0]
    (record,) = pipe(text=messages, max_new_tokens=N_NEW, return_full_text=False)
    expected = ear.chat(messages, max_new_tokens=N_NEW)
    assert record["generated_text"].strip() == expected.strip()
    (record,) = pipe(text=messages, max_new_tokens=N_NEW)
    assert record["generated_text"][-1]["content"].strip() == expected.strip()


def test_what_is_saved_is_loaded_again(folder: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "alone")
    inputs = encode(processor, conversations(folder)[0])
    again: Any = AutoModel.from_pretrained(tmp_path / "both", device_map={"": "cpu"})
    assert again.generate(**inputs, max_new_tokens=N_NEW).equal(
        model.generate(**inputs, max_new_tokens=N_NEW)
    )
    for name in ("both", "alone"):
        loaded = OssicleProcessor.from_pretrained(tmp_path / name)
        assert_close(dict(encode(loaded, conversations(folder)[0])), dict(inputs))
    assert ossicle.load(tmp_path / "both", device="cpu").settings == model.ear.settings
    # An ear's own settings count, whatever processor was saved into its folder before.
    other = (tmp_path / "both/processor_config.json").read_text().replace('"pocket/llm"', '"gone"')
    for name in ("both", "alone"):
        (tmp_path / name / "processor_config.json").write_text(other)
    assert OssicleProcessor.from_pretrained(tmp_path / "both").settings == model.ear.settings
    for content in ("{", "[]", "{}", other.replace('"query"', '"none"').replace('"form"', '"from"')):
        (tmp_path / "alone/processor_config.json").write_text(content)
        with pytest.raises(CheckpointError, match="is damaged, or no processor of an ear"):
            OssicleProcessor.from_pretrained(tmp_path / "alone")


def test_how_answers_are_generated_is_saved_with_the_model(
    folder: Path, tmp_path: Path, processor: Any
) -> None:
    model: Any = AutoModel.from_pretrained(folder / "ear", device_map="cpu")
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain/generation_config.json").exists()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "short")
    again: Any = AutoModel.from_pretrained(tmp_path / "short", device_map="cpu")
    assert again.generate(**encode(processor, conversations(folder)[0])).shape[1] == 3


def test_an_array_has_the_rate_that_is_given(folder: Path, processor: Any) -> None:
    sound = (0.3 * np.sin(np.arange(8_000) / 5) * np.linspace(0.1, 1, 8_000)).astype(np.float32)
    parts = [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]
    expected = encode(processor, [{"role": "user", "content": [{"type": "audio", "audio": (sound, 8_000)}]}])
    for options in ({"sampling_rate": 8_000}, {"processor_kwargs": {"sampling_rate": 8_000}}):
        assert_close(dict(encode(processor, parts, **options)), dict(expected))
    assert encode(processor, parts)["input_features"].shape != expected["input_features"].shape


def test_an_ear_in_memory_is_a_model(ear: Ear, folder: Path, model: Any) -> None:
    inputs = encode(OssicleProcessor.from_ear(ear), conversations(folder)[1])
    ids = OssicleForConditionalGeneration.from_ear(ear).generate(**inputs, max_new_tokens=N_NEW)
    assert ids.equal(model.generate(**inputs, max_new_tokens=N_NEW))


def test_encoder_and_llm_have_the_dtype_that_is_asked_for(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    expected = ossicle.load(folder / "ear", device="cpu", dtype="bfloat16").chat(conversations(folder)[0])
    inputs = encode(processor, conversations(folder)[0])
    for dtype in (torch.bfloat16, "bfloat16"):
        model: Any = AutoModel.from_pretrained(folder / "ear", device_map="cpu", dtype=dtype)
        assert model.dtype == model.language_model.dtype == torch.bfloat16
        (answer,) = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        assert answer.strip() == expected
    with pytest.raises(ConfigError, match="dtype is 'bfloat17', expected float32, bfloat16 or float16"):
        OssicleForConditionalGeneration.from_pretrained(folder / "ear", device_map="cpu", dtype="bfloat17")


def test_a_model_of_another_precision_keeps_its_connector_and_its_fingerprints(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    model: Any = AutoModel.from_pretrained(folder / "ear", device_map="cpu")
    before = {name: weight.clone() for name, weight in model.connector.state_dict().items()}
    model.to(torch.float16)
    assert model.language_model.dtype == model.audio_tower.dtype == torch.float16
    assert_close(dict(model.connector.state_dict()), before, rtol=0, atol=0)
    model.to(torch.bfloat16)
    assert model.generate(**encode(processor, conversations(folder)[0]), max_new_tokens=2).shape == (1, 2)
    for name, save in (("model", model.save_pretrained), ("ear", lambda path: ossicle.save(model.ear, path))):
        save(tmp_path / name)
        assert ossicle.load(tmp_path / name, device="cpu").fingerprints == model.config.fingerprints


def test_a_model_is_pushed_as_an_ear(
    ear: Ear, folder: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr(
        ossicle, "push_to_hub", lambda *given, **options: pushed.append((given, options)) or "there"
    )
    model: Any = AutoModel.from_pretrained(folder / "ear", device_map="cpu")
    assert model.push_to_hub("user/ear", private=True) == "there"
    assert pushed == [((model.ear, "user/ear"), {"private": True})]
    with pytest.raises(ConfigError, match="max_shard_size is no option of an ear's push_to_hub"):
        model.push_to_hub("user/ear", max_shard_size="1GB")
    for push in (
        processor.push_to_hub,
        lambda name: processor.save_pretrained(folder / name, push_to_hub=True),
    ):
        with pytest.raises(
            ConfigError, match=r"model.push_to_hub\('ear'\) uploads all that AutoProcessor needs"
        ):
            push("ear")
    with pytest.raises(ConfigError, match=r"use model\.push_to_hub"):
        model.save_pretrained(folder / "never", push_to_hub=True)
    assert not (folder / "never").exists()


def test_the_llm_is_quantized_if_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes weights, exists only for Linux")
    ear = tiny_ear("query", base=save_tiny_backbones(tmp_path))
    ossicle.save(ear, tmp_path / "ear")
    bits = BitsAndBytesConfig(load_in_8bit=True)
    model: Any = AutoModel.from_pretrained(tmp_path / "ear", device_map="cpu", quantization_config=bits)
    assert any(type(module).__name__ == "Linear8bitLt" for module in model.language_model.modules())
    inputs = encode(AutoProcessor.from_pretrained(tmp_path / "ear"), conversations(folder)[0])
    assert model.generate(**inputs, max_new_tokens=2).shape == (1, 2)
    model.save_pretrained(tmp_path / "again")  # with the fingerprints of the LLM as it was
    assert ossicle.load(tmp_path / "again", device="cpu").settings.connector == ear.settings.connector


def test_an_ear_from_the_hub_needs_no_import_of_ours(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from transformers import AutoModel, AutoProcessor\n"
        f"name, options = {str(folder / 'ear')!r}, dict(trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(name, **options)\n"
        "model = AutoModel.from_pretrained(name, device_map='cpu', **options)\n"
        "import ossicle.hf\n"
        "assert type(model) is ossicle.hf.OssicleForConditionalGeneration\n"
        "assert type(processor) is ossicle.hf.OssicleProcessor\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_importing_ossicle_loads_no_transformers() -> None:
    code = "import sys, ossicle; assert not {'transformers', 'torch', 'ossicle.hf'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serve_files(folder: Path) -> Generator[str]:
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_sound_is_read_from_an_address(folder: Path, processor: Any) -> None:
    with serve_files(folder) as address:
        part = {"type": "audio", "url": f"{address}/0.wav"}
        inputs = encode(processor, [{"role": "user", "content": [part]}])
        assert_close(dict(inputs), dict(encode(processor, conversations(folder)[0])))
        with pytest.raises(AudioError, match=r"missing\.wav cannot be read .*404"):
            encode(
                processor, [{"role": "user", "content": [{"type": "audio", "url": f"{address}/missing.wav"}]}]
            )
    with pytest.raises(AudioError, match=r"0\.wav cannot be read"):
        encode(processor, [{"role": "user", "content": [part]}])


def test_sound_is_read_from_base64_and_file_addresses(folder: Path, processor: Any) -> None:
    content = base64.b64encode((folder / "0.wav").read_bytes()).decode()
    expected = dict(encode(processor, conversations(folder)[0]))
    for url in (f"data:audio/wav;base64,{content}", content, (folder / "0.wav").as_uri()):
        inputs = encode(processor, [{"role": "user", "content": [{"type": "audio", "url": url}]}])
        assert_close(dict(inputs), expected)
    with pytest.raises(AudioError, match="a sound in a message is no base64"):
        encode(
            processor, [{"role": "user", "content": [{"type": "audio", "url": "data:audio/wav;base64,ä"}]}]
        )


def test_transformers_serve_finds_the_answer_behind_the_prompt(
    folder: Path, model: Any, processor: Any
) -> None:
    inputs = encode(processor, conversations(folder)[0])
    answer = model.generate(**inputs, max_new_tokens=N_NEW)
    served = model.generate(**inputs, max_new_tokens=N_NEW, tokenizer=processor)
    assert served[:, inputs["input_ids"].shape[-1] :].equal(answer)


def test_malformed_input_is_one_clear_line(folder: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    messages = conversations(folder)[0]
    assert "OssicleProcessor" in repr(processor)
    inputs = encode(processor, messages)
    text = processor.apply_chat_template(messages)
    for call, expected in (
        (lambda: processor(text=text), "0 sounds for 1 placeholders"),
        (lambda: encode(processor, []), "messages is"),
        (lambda: encode(processor, messages, tools=[{"name": "clock"}]), "tools is"),
        (lambda: encode(processor, messages, continue_final_message=True), "continue_final_message is True"),
        (lambda: encode(processor, [{"role": "user", "content": "<|audio|>"}]), "a control token of the LLM"),
        (lambda: model.generate(), "input_ids is missing"),
        (lambda: model.generate(input_ids=inputs["input_ids"]), "0 sounds for 1 placeholders"),
        (lambda: model.generate(**inputs, num_return_sequences=2), "'num_return_sequences' is not an option"),
    ):
        with pytest.raises(RequestError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)
    both = encode(processor, [messages, messages])
    with pytest.raises(RequestError, match="a streamer takes one prompt, not 2"):
        model.generate(**both, streamer=Collector())
    with pytest.raises(ConfigError, match="device_map has 2 devices"):
        AutoModel.from_pretrained(folder / "ear", device_map={"a": 0, "b": 1})
    with pytest.raises(ConfigError, match="expected BitsAndBytesConfig with 8 or 4 bits"):
        AutoModel.from_pretrained(folder / "ear", device_map="cpu", quantization_config=BitsAndBytesConfig())
    with pytest.raises(CheckpointError, match="is not an ear"):
        OssicleForConditionalGeneration.from_pretrained(tmp_path)
