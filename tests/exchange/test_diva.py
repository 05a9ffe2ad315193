"""The published DiVA's layout: audio tokens and answers against a computation from its tensors alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import save_tiny_backbones, tiny_ear
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.cli import main
from ossicle.config import BaseSettings, ConnectorSettings
from ossicle.connectors import count_audio_tokens
from ossicle.errors import CheckpointError, ConfigError
from ossicle.exchange.diva import export_diva, import_diva

N_QUERIES, D_ENCODER, D_LLM = 12, 32, 48
SOUND = (0.1 * np.random.default_rng(0).standard_normal(40_000).astype(np.float32), SAMPLE_RATE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseSettings:
    return save_tiny_backbones(tmp_path_factory.mktemp("backbones"))


def write_diva(folder: Path, base: BaseSettings, n_merged: int = 1) -> Path:
    """Writes random weights as the published model has them: the decoder whole, the projection transposed."""
    torch.manual_seed(3)
    decoder = WhisperModel.from_pretrained(base.encoder).decoder.state_dict()
    weights: dict[str, Tensor] = {
        "query_tokens": torch.randn(N_QUERIES, D_ENCODER),
        "projection.weight": 0.1 * torch.randn(n_merged * D_ENCODER, D_LLM),
        "projection.bias": torch.randn(D_LLM),
        **{f"connector.{name}": weight + 0.05 * torch.randn_like(weight) for name, weight in decoder.items()},
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    names = {"reference_encoder": base.encoder, "reference_decoder": base.llm}
    (folder / "config.json").write_text(json.dumps({"model_type": "diva", **names}))
    return folder


@pytest.fixture(params=[1, 4])
def folder(request: pytest.FixtureRequest, tmp_path: Path, base: BaseSettings) -> Path:
    return write_diva(tmp_path / "diva", base, request.param)


@torch.no_grad()
def compute_audio_tokens(folder: Path, base: BaseSettings) -> Tensor:
    """Runs transformers' own Whisper over the queries, as the published code does."""
    weights = load_file(folder / "model.safetensors")
    whisper: Any = WhisperModel.from_pretrained(base.encoder)
    prefix = "connector."
    whisper.decoder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    )
    extractor = WhisperFeatureExtractor(chunk_length=6)
    mel = extractor(SOUND[0], sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    encoded = whisper.encoder(mel).last_hidden_state
    states = whisper.decoder(
        inputs_embeds=weights["query_tokens"][None], encoder_hidden_states=encoded
    ).last_hidden_state
    width = len(weights["projection.weight"])
    return states.reshape(-1, width) @ weights["projection.weight"] + weights["projection.bias"]


@torch.no_grad()
def compute_answer(base: BaseSettings, tokens: Tensor, messages: Any) -> list[int]:
    """Generates from the chat template's text with the audio tokens in the place of the sound."""
    llm: Any = AutoModelForCausalLM.from_pretrained(base.llm)
    tokenizer: Any = AutoTokenizer.from_pretrained(base.llm)
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, date_string="26 Jul 2024"
    )
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split("SOUND"))
    embed = llm.get_input_embeddings()
    embeds = torch.cat([embed(torch.tensor(before)), tokens, embed(torch.tensor(after))])
    mask = torch.ones(1, len(embeds), dtype=torch.long)
    ids = llm.generate(inputs_embeds=embeds[None], attention_mask=mask, max_new_tokens=5, do_sample=False)
    return ids[0].tolist()


def test_an_imported_ear_hears_and_answers_as_the_published_computation(
    folder: Path, base: BaseSettings
) -> None:
    ear = import_diva(str(folder), device="cpu")
    expected = compute_audio_tokens(folder, base)
    assert_close(ear.hear(SOUND), expected, rtol=1e-4, atol=1e-4)
    part = {"type": "audio", "audio": SOUND}
    instruction = {"type": "text", "text": "the cat sat"}
    for own, read in (
        (
            [{"role": "user", "content": [part]}],
            [{"role": "user", "content": "SOUND"}],
        ),
        (  # the instruction in the system's place
            [{"role": "system", "content": "the cat sat"}, {"role": "user", "content": [part]}],
            [{"role": "system", "content": "the cat sat"}, {"role": "user", "content": "SOUND"}],
        ),
        (  # or behind the sound
            [{"role": "user", "content": [part, instruction]}],
            [{"role": "user", "content": "SOUND the cat sat"}],
        ),
    ):
        answer = ear.generate_ids_batch([own], max_new_tokens=5)[0]
        assert answer == compute_answer(base, expected, read)


def test_what_is_imported_is_exported_again(folder: Path, base: BaseSettings, tmp_path: Path) -> None:
    assert main(["import", "diva", str(folder), str(tmp_path / "ear")]) == 0
    assert main(["export", "diva", str(tmp_path / "ear"), str(tmp_path / "back")]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    unused = {"connector.embed_tokens.weight"}
    # Positions beyond the queries are the Whisper's.
    assert_close(
        before["connector.embed_positions.weight"][:N_QUERIES],
        after["connector.embed_positions.weight"][:N_QUERIES],
    )
    for name in before.keys() - unused - {"connector.embed_positions.weight"}:
        assert_close(before[name], after[name], rtol=0, atol=0)
    names = {"encoder": base.encoder, "llm": base.llm}
    again = import_diva(str(tmp_path / "back"), device="cpu", **names)
    assert_close(again.hear(SOUND), compute_audio_tokens(folder, base), rtol=1e-4, atol=1e-4)


def test_merged_states_are_fewer_audio_tokens(base: BaseSettings) -> None:
    ear = tiny_ear("diva", n_queries=12, n_merged=4)
    assert ear.hear(SOUND).shape == (3, D_LLM)
    assert count_audio_tokens(ear.settings.connector, [2, 5], [100, 200]) == [3, 3]
    for wrong in ({"n_merged": 5}, {"n_merged": 0}, {"n_merged": 4, "form": "query"}):
        settings: dict[str, Any] = {"form": "diva", "n_queries": 12, **wrong}
        with pytest.raises(ConfigError, match=r"connector\.n_merged"):
            ConnectorSettings(**settings)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> str:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def refusal(source: str, **options: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_diva(source, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_layouts_are_refused_in_one_line(tmp_path: Path, base: BaseSettings) -> None:
    folder = write_diva(tmp_path / "diva", base)
    assert "is not a DiVA's: expected the keys reference_encoder and reference_decoder" in refusal(base.llm)
    lacks = change(folder, lambda weights: weights.pop("query_tokens"))
    assert "is not a DiVA: it lacks query_tokens, and has connector." in refusal(lacks)
    change(folder, lambda weights: weights.update(query_tokens=torch.zeros(12, 24)))
    assert "expected [Q, E], [n E, D] (stored transposed) and [D]" in refusal(str(folder))
    change(folder, lambda weights: weights.update(query_tokens=torch.zeros(12, 16)))
    assert "does not fit its encoder and LLM" in refusal(str(folder))
    (folder / "model.safetensors").write_bytes(b"no tensors")
    assert "model.safetensors is damaged" in refusal(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "its weights as a pickle (pytorch_model.bin), which can run code" in refusal(str(folder))
    (folder / "config.json").unlink()
    assert "config.json cannot be read" in refusal(str(folder))
    assert "config.json cannot be read" in refusal(str(tmp_path / "nowhere"))


def test_other_ears_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has form query, expected form diva"):
        export_diva(tiny_ear("query"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="has 1 layers, but the published model takes all 2"):
        export_diva(tiny_ear("diva", n_layers=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_ear_that_was_imported_is_loaded_again(tmp_path: Path, base: BaseSettings) -> None:
    folder = write_diva(tmp_path / "diva", base, 4)
    ear = import_diva(str(folder), device="cpu")
    ossicle.save(ear, tmp_path / "ear")
    assert_close(ossicle.load(tmp_path / "ear", device="cpu").hear(SOUND), ear.hear(SOUND))
