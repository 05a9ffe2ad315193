"""`ossicle verify` finds an LLM of any family unchanged, and finds every change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_families import save_tiny_llm
from support.tiny_models import save_tiny_backbones, tiny_llama
from support.tiny_tokenizers import FAMILIES, tiny_tokenizer
from torch import nn

from ossicle import checkpoint
from ossicle.backbones.causal_lm import embed
from ossicle.chat import generation
from ossicle.chat.generation import Prompt
from ossicle.chat.messages import parse_conversation
from ossicle.chat.template import ChatTemplate
from ossicle.cli import main
from ossicle.config import BaseSettings, ConnectorSettings, PromptSettings
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError
from ossicle.evaluation import reference_llm
from ossicle.evaluation.verify import PROMPTS, VerificationReport, hash_weights, verify

PROMPT_TEXTS = ("what is the capital of france?", "hello there", "why?")
SETTINGS = (
    PromptSettings(),
    PromptSettings(system="you are a helpful assistant.", date="2025-01-02"),
    PromptSettings(system=""),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs each test in its own folder, and undoes the environment that main sets for transformers."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> BaseSettings:
    return save_tiny_backbones(tmp_path_factory.mktemp("backbones"))


def save_ear(folder: Path, encoder: str, llm: str) -> str:
    settings = EarSettings(
        base=BaseSettings(encoder=encoder, llm=llm),
        prompt=SETTINGS[1],
        connector=ConnectorSettings(n_queries=24),
    )
    torch.manual_seed(0)
    checkpoint.save(Ear.new(settings, "cpu"), folder)
    return str(folder)


@pytest.fixture(scope="module")
def ear(backbones: BaseSettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_ear(tmp_path_factory.mktemp("ears") / "ear", backbones.encoder, backbones.llm)


def flip_a_bit(llm: nn.Module) -> str:
    """Changes the lowest bit of one value of one tensor, and returns the tensor's name."""
    name, weight = list(llm.named_parameters())[3]
    with torch.no_grad():
        weight.view(torch.int32)[0, 0] ^= 1
    return name


@pytest.fixture
def modify_loaded_ear(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Ear], Any]], None]:
    """Applies a modification to every ear that is loaded afterwards."""
    load = checkpoint.load

    def apply(modification: Callable[[Ear], Any]) -> None:
        def load_modified(*args: Any, **kwargs: Any) -> Ear:
            ear = load(*args, **kwargs)
            modification(ear)
            return ear

        monkeypatch.setattr(checkpoint, "load", load_modified)

    return apply


# Unchanged


@pytest.mark.parametrize("family", ["llama-tied", "gemma3-with-eyes", "gpt2", "mistral"])
def test_an_unchanged_llm_of_any_family_is_found_unchanged(
    family: str, backbones: BaseSettings, tmp_path: Path
) -> None:
    llm = save_tiny_llm(family, tmp_path / "llm")
    report = verify(save_ear(tmp_path / "ear", backbones.encoder, llm), PROMPT_TEXTS, max_new_tokens=8)
    assert report.differences == ()
    assert report.reference.weights == report.in_ear.weights
    assert report.reference.answers == report.in_ear.answers_before == report.in_ear.answers_after
    assert all(report.reference.answers)
    assert report.in_ear.recorded_fingerprint == report.in_ear.fingerprint


def test_shared_weights_are_hashed_once(backbones: BaseSettings) -> None:
    tied, untied = (tiny_llama(tie_word_embeddings=is_tied) for is_tied in (True, False))
    n = tied.lm_head.weight.numel()
    assert hash_weights(untied).n_values == hash_weights(tied).n_values + n
    assert hash_weights(tied).n_values >= sum(weight.numel() for weight in tied.parameters())
    assert hash_weights(tied).sha256 == hash_weights(tiny_llama(tie_word_embeddings=True)).sha256


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_reference_prompts_equal_those_of_our_chat_template(family: str, settings: PromptSettings) -> None:
    tokenizer = tiny_tokenizer(family)
    template = ChatTemplate(tokenizer, settings)
    for text in PROMPT_TEXTS:
        own = reference_llm.encode_prompt(tokenizer, text, settings)
        assert own == template.tokenize(parse_conversation([{"role": "user", "content": text}]))


def test_reference_answers_end_and_penalize_as_the_ear_s_do() -> None:
    tokenizer = tiny_tokenizer("llama")
    llm = tiny_llama(tokenizer, seed=8, max_position_embeddings=24)
    ids = tuple(tokenizer(PROMPT_TEXTS[0], add_special_tokens=False)["input_ids"])
    prompt = Prompt(embed(llm, ids), torch.tensor(ids))
    free = reference_llm.generate_answer(llm, tokenizer, ids, 8)
    for options in ({"eos_token_id": [free[2], 0]}, {"eos_token_id": None}, {"repetition_penalty": 2.0}):
        for name, value in {"temperature": 0.5, "do_sample": True, **options}.items():
            setattr(llm.generation_config, name, value)
        own = reference_llm.generate_answer(llm, tokenizer, ids, 40)
        assert list(own) == generation.generate_answer_ids(llm, tokenizer, [prompt], max_new_tokens=40)[0]
        assert len(own) == (3 if options.get("eos_token_id") else 24 - len(ids))


# Changed


def test_one_bit_of_one_weight_is_found(ear: str, modify_loaded_ear: Callable[..., None]) -> None:
    names: list[str] = []
    modify_loaded_ear(lambda loaded: names.append(flip_a_bit(loaded.llm)))
    report = verify(ear, PROMPT_TEXTS, max_new_tokens=4)
    assert report.reference.weights.find_differences(report.in_ear.weights) == names
    assert report.reference.weights.sha256 != report.in_ear.weights.sha256
    assert (
        report.differences[0] == f"1 of {len(report.reference.weights.digests)} tensors, such as {names[0]}"
    )


def test_a_weight_that_changes_during_hearing_is_found(
    ear: str, modify_loaded_ear: Callable[..., None]
) -> None:
    def touch(loaded: Ear) -> None:
        hear = loaded.embed_speech
        loaded.embed_speech = lambda sounds: (flip_a_bit(loaded.llm) if len(sounds) else "", hear(sounds))[1]

    modify_loaded_ear(touch)
    report = verify(ear, PROMPT_TEXTS, max_new_tokens=4)
    assert report.reference.answers == report.in_ear.answers_before
    assert "1 of" in report.differences[0]


def test_a_buffer_that_is_in_no_file_is_compared(ear: str, modify_loaded_ear: Callable[..., None]) -> None:
    modify_loaded_ear(lambda loaded: loaded.llm.model.rotary_emb.inv_freq.mul_(1.5))
    report = verify(ear, PROMPT_TEXTS, max_new_tokens=4)
    assert any("inv_freq" in difference for difference in report.differences)


def test_other_answers_with_the_same_weights_are_found(
    ear: str, modify_loaded_ear: Callable[..., None]
) -> None:
    modify_loaded_ear(
        lambda loaded: loaded.llm.lm_head.register_forward_hook(lambda module, given, logits: -logits)
    )
    report = verify(ear, PROMPT_TEXTS, max_new_tokens=4)
    assert report.reference.weights == report.in_ear.weights
    assert report.differences == (
        f"3 of 3 answers before hearing, such as {PROMPT_TEXTS[0]!r}",
        f"3 of 3 answers after hearing, such as {PROMPT_TEXTS[0]!r}",
    )


def test_another_prompt_or_tokenizer_is_found(ear: str, modify_loaded_ear: Callable[..., None]) -> None:
    def touch(loaded: Ear) -> None:
        loaded.template = ChatTemplate(loaded.tokenizer, PromptSettings(system="Be rude."))
        loaded.tokenizer.chat_template = f"{loaded.tokenizer.chat_template} "

    modify_loaded_ear(touch)
    report = verify(ear, PROMPT_TEXTS[:1], max_new_tokens=4)
    assert report.differences[:2] == (
        "the tokenizer",
        f"1 of 1 prompts' tokens, such as {PROMPT_TEXTS[0]!r}",
    )


# The command


def test_the_command_prints_the_result_and_writes_the_report(
    ear: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text("\ufeffhello there\n\n  why? \n", encoding="utf-8")
    argv = ["verify", ear, "--prompts", "prompts.txt", "--max-new-tokens", "4", "--json", "found.json"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "The LLM is unchanged." in printed
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert found["is_unchanged"] is True
    assert [row["prompt"] for row in found["answers"]] == ["hello there", "why?"]
    assert found["weights_sha256"]["reference"] == found["weights_sha256"]["in_ear"]
    assert found["weights_sha256"]["reference"][:16] in printed
    assert printed.count("same") == 6
    assert "differs" not in printed


def test_the_command_fails_on_a_changed_llm(
    ear: str, modify_loaded_ear: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    modify_loaded_ear(lambda loaded: flip_a_bit(loaded.llm))
    assert main(["verify", ear, "--n-prompts", "1", "--max-new-tokens", "2", "--json", "found.json"]) == 1
    out, err = capsys.readouterr()
    assert "differs" in out
    assert "unchanged" not in out
    assert err.splitlines()[-1].startswith("ossicle: the LLM in ")
    assert "1 of" in err
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["is_unchanged"] is False


def test_an_ear_of_another_llm_is_refused_before_any_prompt(ear: str, tmp_path: Path) -> None:
    config = json.loads((Path(ear) / checkpoint.CONFIG).read_text())
    config["fingerprints"]["llm"] = "0" * 16
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(ear).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / checkpoint.CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="trained with another llm"):
        verify(str(other), PROMPT_TEXTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-prompts", "0"], "--n-prompts is 0, expected 1 to "),
        (["--n-prompts", "1000"], f"expected 1 to {len(PROMPTS)}"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompts", "empty.txt"], "empty.txt has no prompts"),
        (["--prompts", "bytes.txt"], "bytes.txt cannot be read: it is not UTF-8"),
        (["--prompts", "two.txt", "--n-prompts", "3"], "--n-prompts is 3, expected 1 to 2"),
    ],
)
def test_invalid_flags_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("bytes.txt").write_bytes(b"hello \xff")
    Path("two.txt").write_text("a\nb\n")
    assert main(["verify", "nowhere", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_embedded_ear_is_verified() -> None:
    report: VerificationReport = verify("pocket/ear", PROMPTS[:3], max_new_tokens=16)
    assert report.differences == ()
    assert report.reference.texts[0] == "The capital of Japan is Tokyo."
