"""An ear on disk: loaded as it was saved, written completely or not at all, refused on other backbones."""

import copy
import errno
import json
import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_families import save_tiny_llm
from support.tiny_models import save_tiny_backbones, tiny_ear, tiny_whisper
from support.tiny_tokenizers import tiny_tokenizer

import ossicle
from ossicle import checkpoint, checkpoint_v1
from ossicle.atomic_io import atomic_write
from ossicle.backbones import pretrained
from ossicle.backbones.fingerprints import fingerprint_model, fingerprint_tokenizer
from ossicle.backbones.silence import compute_silence, synthesize_voice
from ossicle.config import BaseSettings, ConnectorSettings, PromptSettings
from ossicle.connectors.vocabulary_overlap import SharedTokens
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError, ConfigError
from ossicle.hub_upload import CardMetadata, _copy_ear, _prepare

SOUND = torch.sin(torch.arange(16_000) * 0.2).numpy()
TALK = [{"role": "user", "content": [{"type": "audio", "audio": SOUND}, {"type": "text", "text": "why?"}]}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseSettings:
    return save_tiny_backbones(tmp_path_factory.mktemp("bases"))


def new_ear(base: BaseSettings, form: str = "query", seed: int = 0) -> Ear:
    torch.manual_seed(seed)
    settings = EarSettings(
        base=base,
        prompt=PromptSettings(system="you are a helpful assistant.", date="2025-01-02"),
        connector=ConnectorSettings(form=form, n_queries=24),  # ty: ignore[invalid-argument-type]
    )
    return Ear.new(settings, "cpu")


@pytest.fixture(scope="module")
def ear(base: BaseSettings) -> Ear:
    return new_ear(base)


@pytest.fixture
def folder(ear: Ear, tmp_path: Path) -> Path:
    checkpoint.save(ear, tmp_path / "ear")
    return tmp_path / "ear"


def refusal(folder: Path, **options: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        ossicle.load(folder, device="cpu", **options)  # ty: ignore[invalid-argument-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def change(folder: Path, **keys: object) -> None:
    path = folder / checkpoint.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("form", ["query", "autoregressive", "anchored", "diva", "stack"])
def test_a_loaded_ear_equals_the_saved_one(base: BaseSettings, form: str, tmp_path: Path) -> None:
    ear = new_ear(base, form)
    ossicle.save(ear, tmp_path / "runs" / "ear", card="## Numbers\n")
    again = ossicle.load(str(tmp_path / "runs" / "ear"), device="cpu")
    assert again.settings == ear.settings
    torch.testing.assert_close(again.hear(SOUND), ear.hear(SOUND), rtol=0, atol=0)
    assert again.chat(TALK, max_new_tokens=8) == ear.chat(TALK, max_new_tokens=8)
    assert not any(weight.requires_grad for weight in again.connector.parameters())
    assert "## Numbers" in (tmp_path / "runs" / "ear" / checkpoint.CARD).read_text()


@pytest.mark.parametrize("form", ["query", "autoregressive", "anchored", "diva", "stack"])
def test_an_ear_is_loaded_in_half_the_precision(base: BaseSettings, form: str, tmp_path: Path) -> None:
    ear = new_ear(base, form)
    checkpoint.save(ear, tmp_path / "ear")
    half = ossicle.load(tmp_path / "ear", device="cpu", dtype="bfloat16")
    assert {half.whisper.model.dtype, half.llm.dtype, half.hear(SOUND).dtype} == {torch.bfloat16}
    assert isinstance(half.chat(TALK, max_new_tokens=8), str)
    whole, found = (one.encode_sounds([np.zeros(16_000, np.float32)]).states.float() for one in (ear, half))
    torch.testing.assert_close(found, whole, rtol=0.1, atol=0.1)
    checkpoint.save(half, tmp_path / "again")
    again = ossicle.load(tmp_path / "again", device="cpu")
    torch.testing.assert_close(again.hear(SOUND), ear.hear(SOUND), rtol=0, atol=0)


def test_a_precision_that_the_device_lacks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_computes_in", lambda dtype, device: False)
    with pytest.raises(ConfigError, match="does not compute in float16; use --dtype bfloat16 or float32"):
        ossicle.load(folder, device="cpu", dtype="float16")
    with pytest.raises(ConfigError, match="dtype is 'int4', expected float32, bfloat16 or float16"):
        ossicle.load(folder, device="cpu", dtype="int4")
    monkeypatch.setattr(pretrained, "_computes_in", lambda dtype, device: True)
    assert ossicle.load(folder, device="cpu", dtype="float16").llm.dtype == torch.float16


def test_an_llm_of_the_same_fingerprint_is_not_checked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, _llm: object) -> None:
        raise CheckpointError(f"{name} is checked")

    monkeypatch.setattr(pretrained, "check_reads_embeddings", fail)
    assert isinstance(ossicle.load(folder, device="cpu").chat(TALK, max_new_tokens=2), str)
    monkeypatch.setattr(pretrained, "_computes_in", lambda dtype, device: True)
    with pytest.raises(CheckpointError, match="is checked"):
        ossicle.load(folder, device="cpu", dtype="float16")


def test_an_ear_on_a_vision_language_llm_is_saved_and_loaded(base: BaseSettings, tmp_path: Path) -> None:
    llm = save_tiny_llm("gemma3-with-eyes", tmp_path / "llm")
    ear = new_ear(BaseSettings(encoder=base.encoder, llm=llm))
    assert type(ear.llm).__name__ == "Gemma3ForCausalLM"
    checkpoint.save(ear, tmp_path / "ear")
    assert ossicle.load(tmp_path / "ear", device="cpu").chat(TALK, max_new_tokens=8) == ear.chat(
        TALK, max_new_tokens=8
    )


def test_a_folder_holds_settings_weights_and_a_readable_card(folder: Path, ear: Ear) -> None:
    files = {path.name: path for path in folder.iterdir()}
    assert files.keys() == {"config.json", "connector.safetensors", "README.md", "modeling_ossicle.py"}
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o666 & ~umask}
    config = json.loads(files["config.json"].read_text())
    assert config["fingerprints"].keys() == {"encoder", "decoder_vocabulary", "llm", "tokenizer"}
    assert config["ossicle_version"] == ossicle.__version__
    assert config["prompt"]["date"] == "2025-01-02"
    weights = load_file(files["connector.safetensors"])
    assert weights.keys() == ear.connector.state_dict().keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert names_in(folder.parent) == ["ear"]


def test_revisions_of_backbones_from_the_hub_are_recorded(
    ear: Ear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ear.llm.config, "_commit_hash", "0123abc", raising=False)
    checkpoint.save(ear, tmp_path / "ear")
    assert json.loads((tmp_path / "ear" / "config.json").read_text())["base"]["llm_revision"] == "0123abc"


def test_the_folder_of_a_run_can_be_loaded_as_its_ear(ear: Ear, tmp_path: Path) -> None:
    checkpoint.save(ear, tmp_path / "run" / checkpoint.RUN_EAR)
    assert ossicle.load(tmp_path / "run", device="cpu").settings == ear.settings


def test_backbones_can_be_loaded_from_another_location(
    folder: Path, base: BaseSettings, tmp_path: Path
) -> None:
    moved = save_tiny_backbones(tmp_path / "elsewhere")
    change(folder, base={"encoder": "/gone/whisper", "llm": "/gone/llm", "llm_revision": "abc"})
    assert "'/gone/whisper': there is no such folder" in refusal(folder)
    again = ossicle.load(folder, encoder=moved.encoder, llm=moved.llm, device="cpu")
    assert again.settings.base == moved


def test_saving_again_replaces_the_ear_and_keeps_its_neighbors(folder: Path, base: BaseSettings) -> None:
    (folder / "report.json").write_text("{}")
    other = new_ear(base, seed=1)
    checkpoint.save(other, folder)
    torch.testing.assert_close(ossicle.load(folder, device="cpu").hear(SOUND), other.hear(SOUND))
    assert (folder / "report.json").read_text() == "{}"
    assert names_in(folder.parent) == ["ear"]


def test_a_folder_of_other_files_is_never_replaced(ear: Ear, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds files that are not an ear"):
        checkpoint.save(ear, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_is_never_replaced(ear: Ear, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is a file; an ear is a folder"):
        checkpoint.save(ear, tmp_path / "thesis.txt")
    with (
        pytest.raises(CheckpointError, match="unharmed"),
        atomic_write(tmp_path / "thesis.txt", is_folder=True),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("failure", ["disk", "safetensors", "card", "exchange", "interrupt"])
def test_a_failed_save_leaves_the_earlier_ear_and_nothing_else(
    folder: Path, base: BaseSettings, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error: type[BaseException] = CheckpointError
    if failure == "disk":
        monkeypatch.setattr(checkpoint, "save_file", lambda *args: (_ for _ in ()).throw(full))
    elif failure == "safetensors":
        raised = checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")
        monkeypatch.setattr(checkpoint, "save_file", lambda *args: (_ for _ in ()).throw(raised))
    elif failure == "card":
        monkeypatch.setattr(checkpoint, "build_model_card", lambda *args: (_ for _ in ()).throw(full))
    elif failure == "exchange":
        rename = Path.rename

        def rename_all_but_the_new(path: Path, target: Path) -> Path:
            if target == folder and path.name == folder.name:
                raise full
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_all_but_the_new)
    else:
        error = KeyboardInterrupt
        monkeypatch.setattr(checkpoint, "save_file", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(error) as caught:
        checkpoint.save(new_ear(base, seed=1), folder)
    if error is CheckpointError:
        assert "No space left on device" in str(caught.value)
        assert "what was there before is unharmed" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names_in(folder.parent) == ["ear"]


def test_a_folder_without_write_permission_is_a_clear_error(ear: Ear, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "ear", Path("/proc/ear")):
        with pytest.raises(CheckpointError, match="cannot be written"):
            checkpoint.save(ear, place)
    assert names_in(tmp_path) == ["file"]


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(CheckpointError, match="cannot be written"), atomic_write(path) as temporary:
        (temporary / "no folder").write_text("two")
    assert path.read_text() == "one"
    assert names_in(tmp_path) == ["state"]


def test_a_folder_without_an_ear_is_refused(folder: Path, tmp_path: Path) -> None:
    assert f"No such folder: {tmp_path / 'nowhere'}; expected that of an ear" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not an ear: it has no config.json; expected a folder" in refusal(tmp_path / "empty")
    assert "is not an ear: a file" in refusal(folder / "config.json")
    config = json.loads((folder / "config.json").read_text())
    for base in ("x" * 5_000, "../" + "x" * 5_000, "/" + "x" * 5_000):
        (folder / "config.json").write_text(
            json.dumps({**config, "base": {**config["base"], "encoder": base, "llm": base}})
        )
        assert "cannot be looked for (File name too long)" in refusal(folder)
    old = {**config, "format": 1, "connector": {**config["connector"], "form": {"": None}}}
    (folder / "config.json").write_text(json.dumps(old))
    assert "config.json" in refusal(folder)
    (folder / "config.json").write_text("{ not json")
    assert "config.json is damaged" in refusal(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json is damaged" in refusal(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "is not an ear but a model (llama): build an ear for it with `ossicle new`" in refusal(folder)
    for other in ("[]", "{}"):
        (folder / "config.json").write_text(other)
        assert "is not an ear's: expected the keys base, connector, fingerprints, format, prompt" in refusal(
            folder
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"format": 3},
            "has format 3, this version of ossicle reads formats 1 and 2: use the version that wrote it",
        ),
        ({"surprise": 1}, "expected the keys"),
        ({"connector": {"form": "query", "n_querys": 24}}, "unknown key connector.n_querys"),
        ({"connector": {"form": "sideways"}}, "connector.form is 'sideways'"),
        ({"connector": {"n_queries": "many"}}, "connector.n_queries is 'many'"),
        ({"prompt": {"date": "today"}}, "prompt.date is 'today'"),
        ({"base": 3}, "base is 3, expected a table"),
        (
            {"connector": {"form": "query", "n_queries": 25}},
            "does not fit the connector that config.json describes",
        ),
        ({"connector": {"form": "query", "n_queries": 9999}}, "does not fit the connector"),
        ({"connector": {"form": "stack"}}, "does not fit the connector"),
        ({"fingerprints": {}}, "was trained with another encoder: it expects fingerprint None"),
        ({"fingerprints": "none"}, "was trained with another encoder"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_settings_are_refused(folder: Path, keys: dict[str, object], message: str) -> None:
    change(folder, **keys)
    assert message in refusal(folder)


def test_a_config_with_a_byte_order_mark_is_read(folder: Path) -> None:
    path = folder / "config.json"
    text = path.read_text()
    path.write_bytes(text.encode("utf-8-sig"))
    checkpoint.load(folder, device="cpu")
    path.write_bytes(text.encode("utf-16"))
    assert "config.json is damaged (it is in UTF-16, expected UTF-8" in refusal(folder)


def test_damaged_missing_or_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / checkpoint.WEIGHTS
    whole = weights.read_bytes()
    for content in (b"", whole[:100], whole[:-10], b"\x80\x04" + pickle.dumps({"queries": [1.0]}) * 20):
        weights.write_bytes(content)
        assert "connector.safetensors is missing or damaged" in refusal(folder)
    torch.save({"queries": torch.zeros(2)}, weights)
    assert "connector.safetensors is missing or damaged" in refusal(folder)
    weights.unlink()
    assert "connector.safetensors is missing or damaged" in refusal(folder)
    tensors = {"queries": torch.zeros(2)}
    save_file(tensors, weights)
    assert "does not fit the connector" in refusal(folder)


def test_another_backbone_is_refused_with_both_fingerprints(folder: Path, ear: Ear, tmp_path: Path) -> None:
    recorded = json.loads((folder / "config.json").read_text())["fingerprints"]
    base = ear.settings.base
    other = tiny_whisper(seed=9)
    other.model.save_pretrained(tmp_path / "whisper")
    other.tokenizer.save_pretrained(tmp_path / "whisper")
    message = refusal(folder, encoder=str(tmp_path / "whisper"))
    assert f"another encoder: it expects fingerprint {recorded['encoder']}, but" in message
    assert f"has {fingerprint_model(other.model.model.encoder)}" in message
    llm = save_tiny_llm("llama", tmp_path / "llm")
    assert f"another llm: it expects fingerprint {recorded['llm']}, but {llm!r} has" in refusal(
        folder, llm=llm
    )
    ear.llm.save_pretrained(tmp_path / "same")
    tiny_tokenizer("phi4").save_pretrained(tmp_path / "same")
    message = refusal(folder, llm=str(tmp_path / "same"))
    assert f"another tokenizer: it expects fingerprint {recorded['tokenizer']}, but" in message
    assert base == ear.settings.base


@pytest.mark.parametrize("form", ["autoregressive", "query"])
def test_another_decoder_vocabulary_is_refused_by_ears_that_use_it(
    ear: Ear, tmp_path: Path, form: str
) -> None:
    """As in distilled Whispers: the encoder of another Whisper with a decoder of its own."""
    checkpoint.save(tiny_ear(form, base=ear.settings.base), tmp_path / "ear")
    other = copy.deepcopy(tiny_whisper())
    with torch.no_grad():
        other.model.model.decoder.embed_tokens.weight.mul_(2.0)
    other.model.save_pretrained(tmp_path / "whisper")
    other.tokenizer.save_pretrained(tmp_path / "whisper")
    if form == "query":
        assert ossicle.load(tmp_path / "ear", device="cpu", encoder=str(tmp_path / "whisper")).settings
    else:
        message = refusal(tmp_path / "ear", encoder=str(tmp_path / "whisper"))
        assert "trained with another decoder vocabulary" in message


def test_one_changed_weight_changes_the_fingerprint(ear: Ear) -> None:
    layer = torch.nn.Linear(3, 2)
    before = fingerprint_model(layer)
    assert fingerprint_model(torch.nn.Linear(3, 2)) != before
    with torch.no_grad():
        layer.bias[1] += 1
    assert fingerprint_model(layer) != before
    assert fingerprint_model(layer.to(torch.bfloat16)) == fingerprint_model(layer)


def test_a_missing_device_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="device is 'banana'"):
        ossicle.load(folder, device="banana")


def test_the_public_names_exist() -> None:
    assert all(hasattr(ossicle, name) for name in ossicle.__all__)
    assert set(ossicle.__all__) <= set(dir(ossicle))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ossicle.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("form", "old_form"),
    [("query", "left"), ("diva", "right"), ("anchored", "anchored"), ("autoregressive", "autoregressive")],
)
def test_an_ear_of_format_1_is_read(base: BaseSettings, tmp_path: Path, form: str, old_form: str) -> None:
    """Written when the package had another name: forms, fingerprints and weights under their old names."""
    ear, folder = new_ear(base, form), tmp_path / "ear"
    ossicle.save(ear, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"format": 1, checkpoint_v1.OLD_VERSION_KEY: config.pop(checkpoint_v1.VERSION_KEY)}
    config["connector"]["form"] = old_form
    config["fingerprints"]["recogniser"] = config["fingerprints"].pop("decoder_vocabulary")
    (folder / "config.json").write_text(json.dumps(config))
    old = {
        "token_detector.convolution.": "spotter.neighbourhood.",
        "token_detector.": "spotter.",
        "vocabulary_head.": "words.",
        "prompt_embeddings": "prompt",
    }
    weights = load_file(folder / "connector.safetensors")
    for name in list(weights):
        prefix = next((prefix for prefix in old if name.startswith(prefix)), None)
        if prefix:
            weights[old[prefix] + name.removeprefix(prefix)] = weights.pop(name)
    save_file(weights, folder / "connector.safetensors")
    loaded = ossicle.load(folder, device="cpu")
    assert loaded.settings == ear.settings
    torch.testing.assert_close(loaded.hear(SOUND), ear.hear(SOUND), rtol=0, atol=0)
    _copy_ear(folder, tmp_path / "pushed")
    _prepare(tmp_path / "pushed", CardMetadata(), "user/whisper", "user/llm", "user/ear")
    pushed = ossicle.load(tmp_path / "pushed", encoder=base.encoder, llm=base.llm, device="cpu")
    torch.testing.assert_close(pushed.hear(SOUND), ear.hear(SOUND), rtol=0, atol=0)


# An ear without its LLM


def test_an_ear_without_its_llm_embeds_and_transcribes_the_same() -> None:
    whole = ossicle.load("pocket/ear", device="cpu")
    without_llm = ossicle.load("pocket/ear", device="cpu", with_llm=False)
    sound = torch.sin(torch.arange(16_000) / 9)
    audio_tokens = without_llm.hear(sound)
    assert all(weight.is_meta for weight in without_llm.llm.parameters())
    assert without_llm.device.type == "cpu"
    torch.testing.assert_close(audio_tokens, whole.hear(sound).to(audio_tokens.dtype))
    assert without_llm.transcribe([sound]) == whole.transcribe([sound])
    assert without_llm.template.frame == whole.template.frame
    with pytest.raises(
        CheckpointError, match="was loaded without its LLM: it can hear and transcribe, but not answer"
    ):
        without_llm.chat([{"role": "user", "content": "What is the capital of Japan?"}])


def test_an_ear_without_its_llm_still_checks_its_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = fingerprint_tokenizer
    monkeypatch.setattr(
        checkpoint,
        "fingerprint_tokenizer",
        lambda tokenizer: "0123456789abcdef" if tokenizer.chat_template else fingerprint(tokenizer),
    )
    with pytest.raises(CheckpointError, match="trained with another tokenizer"):
        ossicle.load("pocket/ear", with_llm=False)


def test_what_was_computed_once_is_stored_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that both vocabularies share, and silence."""
    pocket = checkpoint.load("pocket/ear")
    base = replace(pocket.settings.base, encoder_window="sound+silence", silence_margin_s=0.0)
    settings = replace(pocket.settings, base=base)
    ear = Ear(pocket.whisper, pocket.llm, pocket.tokenizer, pocket.connector, settings)
    checkpoint.save(ear, tmp_path / "ear")
    sound = synthesize_voice(1, 1.5)
    heard = ear.hear((sound, 16_000))

    def refuse(*_: Any) -> Any:
        raise AssertionError("computed anew")

    with monkeypatch.context() as patch:
        patch.setattr("ossicle.ear.compute_silence", refuse)
        patch.setattr(SharedTokens, "find", refuse)
        assert torch.equal(checkpoint.load(tmp_path / "ear").hear((sound, 16_000)), heard)
    for name in (checkpoint.SILENCE, checkpoint.VOCABULARY):
        (tmp_path / "ear" / name).unlink()
    assert torch.equal(checkpoint.load(tmp_path / "ear").hear((sound, 16_000)), heard)


def test_silence_of_another_encoder_is_computed_anew(tmp_path: Path) -> None:
    pocket = checkpoint.load("pocket/ear")
    settings = replace(
        pocket.settings,
        base=replace(pocket.settings.base, encoder_window="sound+silence", silence_margin_s=0.0),
    )
    other = compute_silence(tiny_whisper().model.model.encoder)
    ear = Ear(pocket.whisper, pocket.llm, pocket.tokenizer, pocket.connector, settings, other)
    assert ear.silence is not None
    assert ear.silence.states.shape[1] == pocket.whisper.config.d_model


def test_shared_tokens_that_do_not_fit_are_found_anew(tmp_path: Path) -> None:
    ear = checkpoint.load("pocket/ear")
    checkpoint.save(ear, tmp_path / "ear")
    path = tmp_path / "ear" / checkpoint.VOCABULARY
    stored = load_file(path)
    for changed in (
        {"llm_ids": stored["llm_ids"] + 100_000},
        {"whisper_ids": -stored["whisper_ids"]},
        {"suppressed_ids": torch.full((1,), -5, dtype=torch.int32)},
    ):
        save_file(stored | changed, path)
        loaded = checkpoint.load(tmp_path / "ear").connector.vocabulary_head
        assert loaded is not None
        assert torch.equal(loaded.ids["llm_ids"], stored["llm_ids"])


@pytest.mark.parametrize("name", [checkpoint.SILENCE, checkpoint.VOCABULARY])
@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damage_of_what_is_stored_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load("pocket/ear"), tmp_path / "ear")
    (tmp_path / "ear" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged.*delete that file"):
        checkpoint.load(tmp_path / "ear")
