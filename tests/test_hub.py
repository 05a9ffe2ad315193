"""Ears to the hub and back, through a stand-in of its HTTP API."""

import json
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers.utils.hub
import yaml
from huggingface_hub import ModelCard, constants, hf_api
from support.fake_hub import FakeHub, serve_hub
from support.reports import build_mixed_report
from support.tiny_models import save_tiny_backbones, tiny_ear
from torch.testing import assert_close
from transformers import AutoProcessor

import ossicle
from ossicle import checkpoint
from ossicle.backbones.fingerprints import fingerprint_model
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.cli import main
from ossicle.errors import CheckpointError
from ossicle.evaluation import load_suite
from ossicle.evaluation.asr import AsrModel
from ossicle.evaluation.report_data import EAR, SUITE_DATA
from ossicle.evaluation.verify import verify
from ossicle.exchange.diva import export_diva, import_diva
from ossicle.hf import OssicleConfig, OssicleForConditionalGeneration, OssicleProcessor
from ossicle.hub_upload import CardMetadata, build_metadata, push_to_hub

FILES = {"config.json", "connector.safetensors", "README.md", "modeling_ossicle.py"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[FakeHub]:
    with serve_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
        # transformers keeps the client of its first call, with the address that held then.
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def refusal(call: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_pushed_is_loaded_by_its_id(hub: FakeHub) -> None:
    address = push_to_hub("pocket/ear", "user/ear")
    sha = hub.branches["user/ear"]["main"]
    assert address == f"{hub.address}/user/ear/commit/{sha}"
    assert hub.commits["user/ear"][sha].keys() == FILES
    own = ossicle.load("pocket/ear", device="cpu")
    for revision in (None, sha):
        loaded = ossicle.load("user/ear", revision=revision, device="cpu")
        assert loaded.settings == own.settings
        assert_close(loaded.connector.state_dict(), own.connector.state_dict(), rtol=0, atol=0)
    model = OssicleForConditionalGeneration.from_pretrained("user/ear", device_map="cpu")
    model.push_to_hub("user/again")
    files = hub.commits["user/again"][hub.branches["user/again"]["main"]]
    assert files.keys() == FILES | {"vocabulary.safetensors"}
    assert type(OssicleConfig.from_pretrained("user/ear")) is OssicleConfig
    assert type(AutoProcessor.from_pretrained("user/ear")) is OssicleProcessor


def test_an_ear_on_the_hub_transcribes_and_is_verified(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub("pocket/ear", "user/ear")
    hub.commit("user/whisper", {"config.json": b"{}", "model.safetensors": b""})
    names = ("user/ear", "user/whisper", "user/none", "none")
    assert [checkpoint.is_ear(name) for name in names] == [True, False, False, False]
    ear = ossicle.load("pocket/ear", device="cpu")
    sound = load_suite("pocket")[0].audio
    assert AsrModel("user/ear", ear)([sound]) == ear.transcribe_audio_tokens([sound])
    report = verify("user/ear", ["What is two plus two?"], max_new_tokens=2)
    assert report.differences == ()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [checkpoint.is_ear(name) for name in names] == [True, False, False, False]


def test_the_command_writes_a_card_that_the_hub_reads(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = build_mixed_report()
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    options = ["--license", "apache-2.0", "--language", "en", "de", "--dataset", "user/speech"]
    bases = ["--encoder", "openai/whisper-tiny.en", "--llm", "user/llm"]
    command = ["push", "pocket/ear", "user/ear", "--report", str(tmp_path / "report.json"), "--private"]
    assert main([*command, *options, *bases, "--revision", "trial"]) == 0
    assert f"{hub.address}/user/ear/commit/" in capsys.readouterr().out
    assert hub.is_private["user/ear"]
    files = hub.commits["user/ear"][hub.branches["user/ear"]["trial"]]
    base = json.loads(files["config.json"])["base"]
    assert (base["encoder"], base["llm"]) == ("openai/whisper-tiny.en", "user/llm")
    text = files["README.md"].decode()
    assert 'ossicle.load("user/ear")' in text
    assert "| All items |" in text
    card = ModelCard(text).data.to_dict()
    assert card["pipeline_tag"] == "audio-text-to-text"
    assert card["base_model"] == ["user/llm", "openai/whisper-tiny.en"]
    assert card["base_model_relation"] == "adapter"
    assert (card["license"], card["language"], card["datasets"]) == (
        "apache-2.0",
        ["en", "de"],
        ["user/speech"],
    )
    (entry,) = card["model-index"]
    metrics = [metric for result in entry["results"] for metric in result["metrics"]]
    values = [report.overall.text_ceiling.value, report.overall.cascade.value, report.overall.ear.value]
    assert [metric["value"] for metric in metrics] == [round(value, 4) for value in values]


def test_numbers_of_a_benchmark_and_a_sound_to_try_go_with_the_ear(hub: FakeHub, tmp_path: Path) -> None:
    report = replace(build_mixed_report(), suite="voicebench/sd-qa")
    tone = 0.3 * np.sin(np.arange(16_000) * 0.2)
    soundfile.write(tmp_path / "question.flac", (tone * np.linspace(0.1, 1.0, len(tone))), 16_000)
    metadata = CardMetadata(report=report, sample=tmp_path / "question.flac")
    push_to_hub("pocket/ear", "user/ear", metadata=metadata)
    files = hub.commits["user/ear"][hub.branches["user/ear"]["main"]]
    assert files.keys() == {*FILES, "sample.wav", ".eval_results/ossicle.yaml"}
    widget = ModelCard(files["README.md"].decode()).data.to_dict()["widget"]
    assert [example["src"] for example in widget] == [f"{hub.address}/user/ear/resolve/main/sample.wav"]
    (result,) = yaml.safe_load(files[".eval_results/ossicle.yaml"])
    assert result["dataset"] == {"id": "hlt-lab/voicebench", "task_id": "sd-qa"}
    assert result["value"] == round(report.overall.ear.value, 4)
    assert "text ceiling" in result["notes"]
    push_to_hub("pocket/ear", "user/ear", metadata=CardMetadata(report=replace(report, suite="own.jsonl")))
    assert hub.commits["user/ear"][hub.branches["user/ear"]["main"]].keys() == FILES
    other_data = replace(report, about={SUITE_DATA: "a/part-of-it"})
    push_to_hub("pocket/ear", "user/ear", metadata=CardMetadata(report=other_data))
    assert hub.commits["user/ear"][hub.branches["user/ear"]["main"]].keys() == FILES


def test_a_report_on_another_ear_is_not_pushed(hub: FakeHub) -> None:
    own = fingerprint_model(ossicle.load("pocket/ear", device="cpu").connector)
    report = replace(build_mixed_report(), about={EAR: f"runs/mine ({own})"})
    push_to_hub("pocket/ear", "user/ear", metadata=CardMetadata(report=report))
    other = replace(report, about={EAR: "runs/mine (0123456789abcdef)"})
    with pytest.raises(CheckpointError, match=rf"the ear to push is \({own}\): evaluate the one"):
        push_to_hub("pocket/ear", "user/ear", metadata=CardMetadata(report=other))


def test_a_push_that_was_cut_short_changes_nothing_and_is_repeated(hub: FakeHub) -> None:
    push_to_hub("pocket/ear", "user/ear", revision="v1")
    before = dict(hub.branches["user/ear"])
    hub.fails_at_commit = True
    assert "user/ear cannot be written" in refusal(lambda: push_to_hub("pocket/ear", "user/ear"))
    assert hub.branches["user/ear"] == before
    hub.fails_at_commit = False
    push_to_hub("pocket/ear", "user/ear")
    push_to_hub("pocket/ear", "user/ear")
    assert hub.commits["user/ear"][hub.branches["user/ear"]["main"]].keys() == FILES


def test_a_card_without_numbers_has_no_model_index() -> None:
    settings = ossicle.load("pocket/ear", device="cpu").settings
    text = build_metadata(settings, CardMetadata(), "user/ear")
    assert "pipeline_tag: audio-text-to-text" in text
    assert "model-index" not in text
    assert "base_model" not in text


def test_an_ear_in_memory_is_pushed(hub: FakeHub, tmp_path: Path) -> None:
    ear = tiny_ear("query", base=save_tiny_backbones(tmp_path))
    assert "encoder" in refusal(lambda: ossicle.push_to_hub(ear, "user/tiny"))
    ear.push_to_hub("user/tiny", encoder="user/whisper", llm="user/llm")
    files = hub.commits["user/tiny"][hub.branches["user/tiny"]["main"]]
    assert files.keys() == FILES
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_pushes_that_fail_say_why(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = refusal(lambda: push_to_hub("pocket/ear", "user/ear", token="hf_read"))
    assert "does not let this token write to user/ear: log in" in message
    assert "cannot be written" in refusal(lambda: push_to_hub("pocket/ear", "user/ear/more"))
    assert "No such folder" in refusal(lambda: push_to_hub(tmp_path / "nowhere", "user/ear"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached: connect" in refusal(lambda: push_to_hub("pocket/ear", "user/ear"))


def test_what_is_no_ear_on_the_hub_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, revision: str | None = None) -> str:
        return refusal(lambda: ossicle.load(name, revision=revision, device="cpu"))

    config = (POCKET_DIR / "ear" / "config.json").read_bytes()
    hub.commit("user/llm", {"config.json": b'{"model_type": "llama"}', "model.safetensors": b""})
    hub.commit("user/pickled", {"config.json": config, "connector.pt": b""})
    hub.commit("user/gated", {})
    hub.gated.add("user/gated")
    assert "user/llm is not an ear: it has no connector.safetensors, but config.json" in load("user/llm")
    assert "has its weights as a pickle (connector.pt), which can run code" in load("user/pickled")
    assert "user/gated is gated on" in load("user/gated")
    assert "No such folder: user/nothing, and no public model of that name" in load("user/nothing")
    assert "user/llm has no revision 'v9'" in load("user/llm", revision="v9")
    for status, advice in ((401, "does not accept this token"), (403, "no right"), (500, "try again later")):
        hub.status = status
        assert re.search(
            f"user/other cannot be downloaded: .* answers {status}: .*{advice}", load("user/other")
        )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached to look for a model of that name" in load("user/other")


def test_a_diva_on_the_hub_is_imported_from_safetensors_only(hub: FakeHub, tmp_path: Path) -> None:
    base = save_tiny_backbones(tmp_path)
    export_diva(tiny_ear("diva", base=base), tmp_path / "diva")
    files = {path.name: path.read_bytes() for path in (tmp_path / "diva").iterdir()}
    hub.commit("user/diva", files)
    assert (
        import_diva("user/diva", encoder=base.encoder, llm=base.llm, device="cpu").settings.connector.form
        == "diva"
    )
    hub.commit("user/pickled", {"config.json": files["config.json"], "pytorch_model-1.bin": b""})
    hub.commit("user/none", {"config.json": files["config.json"]})
    hub.commit("user/empty", {})
    for name, expected in (
        (
            "user/pickled",
            "user/pickled has its weights as a pickle (pytorch_model-1.bin), which can run code",
        ),
        ("user/none", "user/none has no weights: expected weights in safetensors"),
        (
            "user/empty",
            "user/empty: config.json cannot be read (No such file or directory); expected that of a",
        ),
    ):
        assert expected in refusal(lambda name=name: import_diva(name, device="cpu"))


def test_a_changed_backbone_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    push_to_hub("pocket/ear", "user/ear")
    base = save_tiny_backbones(tmp_path)
    message = refusal(lambda: ossicle.load("user/ear", llm=base.llm, device="cpu"))
    assert "was trained with another llm: it expects fingerprint" in message
