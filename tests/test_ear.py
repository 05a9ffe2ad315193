"""Laws of the ear: audio tokens do not depend on the batch, and the frozen models never change."""

import copy
import functools
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_ear, tiny_llama, tiny_whisper
from support.tiny_tokenizers import tiny_tokenizer
from torch import nn

from ossicle.audio.waveform import AudioSource, split_at_quiet
from ossicle.backbones.pretrained import Whisper, resolve_device
from ossicle.backbones.transcription import Transcript
from ossicle.backbones.whisper_prompt import find_language
from ossicle.chat.messages import parse_conversation
from ossicle.config import BaseSettings, PromptSettings
from ossicle.connectors import Transcripts
from ossicle.ear import Ear, EarSettings
from ossicle.errors import AudioError, CheckpointError, ConfigError, RequestError

RATE = 16_000
FORMS = ("query", "autoregressive", "anchored", "diva", "stack")


def tone(duration_s: float, pitch: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(round(1000 * duration_s))
    n = round(duration_s * RATE)
    return (0.3 * np.sin(np.arange(n) * pitch) + 0.05 * rng.standard_normal(n)).astype(np.float32)


def long_sound() -> np.ndarray:
    """Twenty seconds of sound, for an encoder window of six."""
    return np.concatenate([tone(4.0, 0.07), tone(7.5, 0.2), tone(8.5, 0.05)])


def said(*sounds: np.ndarray, text: str | None = None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "audio", "audio": sound} for sound in sounds]
    return [{"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}]


def weights_of(*modules: nn.Module) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module", params=FORMS)
def ear(request: pytest.FixtureRequest) -> Ear:
    return tiny_ear(request.param)


@pytest.fixture(scope="module")
def query_ear() -> Ear:
    return tiny_ear("query")


def test_a_batch_of_sounds_equals_each_alone(ear: Ear) -> None:
    sounds: list[AudioSource] = [tone(0.5), tone(3.0, 0.2), tone(0.1), tone(6.0, 0.05)]
    heard = ear.hear(sounds)
    assert [tokens.shape[1] for tokens in heard] == [48] * 4
    for sound, tokens in zip(sounds, heard, strict=True):
        alone = ear.hear(sound)
        torch.testing.assert_close(tokens, alone)
        assert len(alone) >= 1
    assert ear.hear([]) == []


def test_file_bytes_and_samples_give_the_same_audio_tokens(query_ear: Ear, tmp_path: Path) -> None:
    import soundfile

    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1.0), RATE, subtype="FLOAT")
    for source in (path, str(path), path.read_bytes(), (tone(1.0), RATE)):
        torch.testing.assert_close(query_ear.hear(source), query_ear.hear(tone(1.0)))


def test_a_batch_of_conversations_with_different_numbers_of_sounds_equals_each_alone(ear: Ear) -> None:
    talks = [
        said(tone(1.0), text="answer in spanish, please."),
        [{"role": "user", "content": "hello"}],
        said(tone(0.4), tone(2.0)),
        [*said(tone(0.7)), {"role": "assistant", "content": "yes."}, *said(tone(0.3), text="why?")],
    ]
    singles = [ear.chat(talk, max_new_tokens=8) for talk in talks]
    assert ear.chat_batch(talks, max_new_tokens=8) == singles
    assert ["".join(ear.stream(talk, max_new_tokens=8)) for talk in talks] == singles
    assert ear.chat_batch([]) == []


def test_audio_tokens_are_between_the_template_s_ids(query_ear: Ear) -> None:
    tokens = query_ear.hear(tone(1.0))
    prompt = query_ear.build_prompts([said(tone(1.0))])[0]
    prefix, suffix = query_ear.template.frame
    torch.testing.assert_close(
        prompt.embeds, torch.cat([query_ear.embed(prefix), tokens, query_ear.embed(suffix)])
    )
    assert prompt.ids.tolist() == [*prefix, *[prefix[0]] * len(tokens), *suffix]


def test_a_text_conversation_gets_the_stock_llm_s_answer(query_ear: Ear) -> None:
    messages = [{"role": "user", "content": "what is the capital of france?"}]
    ids = torch.tensor([query_ear.template.tokenize(parse_conversation(messages))])
    own = query_ear.llm.generate(  # ty: ignore[not-callable]
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, pad_token_id=0
    )
    answer = str(query_ear.tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True)).strip()
    assert query_ear.read_batch([messages], max_new_tokens=9) == [answer]


def test_only_the_connector_has_gradients(ear: Ear) -> None:
    """Chats and training steps leave encoder and LLM bit-identical and without gradients."""
    frozen = (ear.llm, ear.whisper.model)
    before = weights_of(*frozen)
    optimizer = torch.optim.SGD(ear.connector.parameters(), lr=0.1)
    learned = weights_of(ear.connector)
    for _ in range(2):
        transcripts = Transcripts(torch.tensor([3, 5]), torch.randint(9, (2, 5)), torch.randn(9, 48))
        audio = ear.connector(ear.encode_sounds([tone(0.6), tone(1.0)]), transcripts)
        ear.llm_states(audio.tokens, audio.n_tokens.tolist(), [1, 1]).square().mean().backward()
        optimizer.step()
    ear.chat(said(tone(0.5)), max_new_tokens=4)
    ear.transcribe([tone(0.5)])
    assert weights_of(*frozen) == before
    assert weights_of(ear.connector) != learned
    for module in frozen:
        assert all(weight.grad is None and not weight.requires_grad for weight in module.parameters())
        assert not any(part.training for part in module.modules())


def test_gradients_flow_to_the_middle_only(query_ear: Ear) -> None:
    middle = torch.randn(2, 5, 48, requires_grad=True)
    query_ear.llm_states(middle, [5, 2], [1, 1]).sum().backward()
    assert middle.grad is not None
    assert bool((middle.grad[0] != 0).all(1).any())
    assert bool((middle.grad[1, :2] != 0).any())
    assert not bool(middle.grad[1, 2:].any())


def test_llm_states_do_not_depend_on_padding_or_the_batch(query_ear: Ear) -> None:
    torch.manual_seed(0)
    middle = torch.randn(3, 6, 48)
    n_middle, n_last = [2, 6, 1], [n + len(query_ear.template.frame.suffix) for n in (2, 6, 1)]
    whole = query_ear.llm_states(middle, n_middle, n_last)
    other = middle.clone()
    other[0, 2:], other[2, 1:] = 1e3, torch.nan
    torch.testing.assert_close(query_ear.llm_states(other, n_middle, n_last), whole, rtol=0, atol=0)
    for row, (n, length) in enumerate(zip(n_middle, n_last, strict=True)):
        alone = query_ear.llm_states(middle[row : row + 1, :n], [n], [length])
        torch.testing.assert_close(whole[row, -length:], alone[0])


def test_the_teacher_equals_the_llm_on_the_template_s_ids(query_ear: Ear) -> None:
    texts = ["what is the capital of france?", "yes"]
    splits = [query_ear.template.split_prompt(text) for text in texts]
    n_text = [len(split.text) for split in splits]
    ids = torch.zeros(2, max(n_text), dtype=torch.long)
    for row, split in enumerate(splits):
        ids[row, : len(split.text)] = torch.tensor(split.text)
    states = query_ear.llm_states(query_ear.embed(ids), n_text, [1, 1])
    for row, text in enumerate(texts):
        whole = query_ear.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
            date_string="26 Jul 2024",
        )
        with torch.no_grad():
            truth = query_ear.llm(input_ids=whole, output_hidden_states=True)
        torch.testing.assert_close(states[row, 0], truth.hidden_states[-1][0, -1])
        torch.testing.assert_close(query_ear.next_token_logits(states[row, 0]), truth.logits[0, -1])


def test_long_sound_equals_its_windows_concatenated(ear: Ear, tmp_path: Path) -> None:
    import soundfile

    longer = long_sound()
    pieces = split_at_quiet(longer, ear.whisper.window_samples)
    assert len(pieces) == 5
    heard = ear.hear(longer)
    torch.testing.assert_close(heard, torch.cat([ear.hear(piece) for piece in pieces]))
    alone, short = ear.hear([longer, tone(1.0)])
    torch.testing.assert_close(alone, heard)
    torch.testing.assert_close(short, ear.hear(tone(1.0)))
    soundfile.write(tmp_path / "long.wav", longer, RATE, subtype="FLOAT")
    torch.testing.assert_close(ear.hear(tmp_path / "long.wav"), heard)


def test_a_full_window_is_one_window_and_one_sample_more_is_two(query_ear: Ear) -> None:
    whole = tone(6.0)
    with torch.inference_mode():
        audio = query_ear.connector(query_ear.encode_sounds([whole]))
    assert torch.equal(query_ear.hear(whole), audio.tokens[0, : int(audio.n_tokens)])
    longer = np.append(whole, np.float32(0.1))
    assert len(split_at_quiet(longer, query_ear.whisper.window_samples)) == 2
    torch.testing.assert_close(
        query_ear.hear(longer),
        torch.cat([query_ear.hear(piece) for piece in split_at_quiet(longer, len(whole))]),
    )
    with pytest.raises(AudioError, match=r"96001 samples\) of audio; expected at most .*96000 samples"):
        query_ear.encode_sounds([longer])


def padded_lengths(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Records the lengths of the sounds in each encoder batch."""
    batches: list[list[int]] = []
    encode_sounds = ear.encode_sounds
    monkeypatch.setattr(
        ear, "encode_sounds", lambda sounds: batches.append(list(map(len, sounds))) or encode_sounds(sounds)
    )
    return batches


def test_more_windows_than_one_batch_holds_keep_their_order(
    query_ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds: list[AudioSource] = [tone(1.0), long_sound(), tone(0.5)]
    together, written = query_ear.hear(sounds), query_ear.transcribe(sounds)
    monkeypatch.setattr("ossicle.ear._WINDOWS_PER_BATCH", 2)
    batches = padded_lengths(query_ear, monkeypatch)
    for apart, tokens in zip(query_ear.hear(sounds), together, strict=True):
        torch.testing.assert_close(apart, tokens)
    assert sum(map(len, batches)) == 7
    assert len(batches) > 2
    assert all(len(batch) * max(batch) <= 2 * query_ear.whisper.window_samples for batch in batches)
    assert query_ear.transcribe(sounds) == written


def test_a_short_sound_is_not_padded_to_a_long_one(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = [tone(length) for length in (0.3, 6.0, 2.0, 0.5, 5.5, 1.1, 0.1, 3.1, 2.2)]
    alone = [ear.hear(sound) for sound in sounds]
    batches = padded_lengths(ear, monkeypatch)
    for tokens, own in zip(ear.hear([*sounds]), alone, strict=True):
        torch.testing.assert_close(tokens, own)
    assert sorted(n for batch in batches for n in batch) == sorted(len(sound) for sound in sounds)
    assert 1 < len(batches) < 5
    for batch in batches:
        assert max(batch) <= 1.5 * min(batch) + RATE


def test_with_the_full_window_all_sounds_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseSettings(encoder="tiny/whisper", llm="tiny/llm", encoder_window="full")
    ear = tiny_ear("diva", base=base)
    batches = padded_lengths(ear, monkeypatch)
    ear.hear([tone(0.1), tone(6.0), tone(1.0)])
    assert [len(batch) for batch in batches] == [3]


@pytest.mark.parametrize("form", FORMS[:3])
def test_the_cost_of_a_question_grows_with_its_duration(form: str) -> None:
    """Counts encoder frames and LLM positions."""
    ear = tiny_ear(form, slots_per_second=6.0)
    frames, positions = [], []
    encoder, llm = ear.whisper.model.model.encoder, ear.llm
    encoder.layer_norm.register_forward_hook(lambda module, given, out: frames.append(out.shape[1]))
    llm.register_forward_pre_hook(
        lambda module, given, named: positions.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    lengths = (1.0, 2.0, 4.0)
    for length in lengths:
        ear.chat(said(tone(length)), max_new_tokens=1)
    n_around = sum(len(part) for part in ear.template.frame)
    for length, n_frames, n_positions in zip(lengths, frames, positions, strict=True):
        assert n_frames == pytest.approx(50 * length, abs=3)
        assert 1 <= n_positions - n_around <= 6 * length + 2


def test_a_silent_window_of_a_long_sound_has_no_audio_tokens(query_ear: Ear) -> None:
    before, after = tone(5.0), tone(3.0)
    parts = [before, np.zeros(round(14.0 * RATE), np.float32), after]
    pieces = split_at_quiet(np.concatenate(parts), query_ear.whisper.window_samples)
    sounding = [piece for piece in pieces if piece.any()]
    assert 2 <= len(sounding) < len(pieces)
    torch.testing.assert_close(
        query_ear.hear(np.concatenate(parts)), torch.cat([query_ear.hear(piece) for piece in sounding])
    )
    assert query_ear.transcribe([np.concatenate(parts)]) == [
        " ".join(filter(None, query_ear.transcribe([*sounding])))
    ]


def test_a_long_sound_is_streamed_as_it_is_answered(ear: Ear) -> None:
    talk = said(long_sound(), tone(0.5), text="answer in spanish, please.")
    answer = ear.chat(talk, max_new_tokens=6)
    assert "".join(ear.stream(talk, max_new_tokens=6)) == answer
    assert ear.chat_batch([said(tone(1.0)), talk], max_new_tokens=6)[1] == answer


def test_a_long_transcript_equals_those_of_its_windows(query_ear: Ear) -> None:
    pieces = split_at_quiet(long_sound(), query_ear.whisper.window_samples)
    apart = query_ear.transcribe([*pieces])
    assert any(apart)
    assert query_ear.transcribe([long_sound()]) == [" ".join(filter(None, apart))]


def test_audio_tokens_are_transcribed_as_their_nearest_tokens(ear: Ear) -> None:
    sounds: list[AudioSource] = [tone(1.5), tone(0.3), tone(4.0, 0.3)]
    ids = [ear.nearest_tokens(tokens) for tokens in ear.hear(sounds)]
    table = ear.embed(torch.arange(ear.llm.config.vocab_size))
    for tokens, names in zip(ear.hear(sounds), ids, strict=True):
        apart = (tokens[:, None] - table).norm(dim=2)
        torch.testing.assert_close(apart.gather(1, names[:, None])[:, 0], apart.min(1).values)
    spelled = ear.transcribe_audio_tokens(sounds)
    texts = ear.tokenizer.batch_decode([row.tolist() for row in ids], skip_special_tokens=True)
    assert spelled == [text.strip() for text in texts]
    assert spelled == [ear.transcribe_audio_tokens([sound])[0] for sound in sounds]
    assert any(spelled)
    assert ear.transcribe_audio_tokens([]) == []


def test_audio_tokens_of_long_sound_are_transcribed_window_by_window(ear: Ear) -> None:
    pieces = split_at_quiet(long_sound(), ear.whisper.window_samples)
    assert ear.transcribe_audio_tokens([long_sound()]) == [
        " ".join(filter(None, ear.transcribe_audio_tokens([*pieces])))
    ]


def test_sound_longer_than_the_llm_s_context_is_a_clear_error() -> None:
    ear = tiny_ear("diva")
    sound = np.tile(tone(6.0), 17)  # 17 windows of 32 audio tokens, and a context of 512
    assert len(ear.hear(sound)) >= 512
    for answer in (ear.chat, ear.stream):
        with pytest.raises(RequestError, match=r"the conversation takes \d+ tokens.*at most 512"):
            answer(said(sound))


def test_transcripts_are_the_same_alone_and_in_a_batch_and_nothing_is_logged(
    query_ear: Ear, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        sounds = [tone(0.1), tone(1.0), tone(6.0)]
        together = query_ear.transcribe(sounds)
        assert together == [query_ear.transcribe([sound])[0] for sound in sounds]
        assert query_ear.transcribe([]) == []
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def multilingual_whisper() -> Whisper:
    """Returns a Whisper of English and German; which of the two it detects depends on the sound alone."""
    whisper = tiny_whisper(seed=3)
    whisper = replace(whisper, tokenizer=copy.deepcopy(whisper.tokenizer))
    whisper.tokenizer.add_special_tokens({"additional_special_tokens": ["<|de|>"]})
    model: Any = whisper.model
    model.resize_token_embeddings(len(whisper.tokenizer), mean_resizing=False)
    vocabulary = whisper.tokenizer.get_vocab()
    model.generation_config.is_multilingual = True
    model.generation_config.lang_to_id = {f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in ("en", "de")}
    return whisper


@pytest.mark.parametrize("kind", ["published", "old", "bare"])
def test_whispers_of_every_kind_of_generation_config_transcribe_alike(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """OpenAI's of today, OpenAI's older ones, and fine-tuned or converted ones with next to nothing."""
    whisper = multilingual_whisper()
    vocabulary = whisper.tokenizer.get_vocab()
    ids = {name: vocabulary[f"<|{name}|>"] for name in ("transcribe", "translate", "notimestamps")}
    sounds = [tone(1.0), tone(0.1)]
    prompts: list[list[int]] = []
    forward = whisper.model.forward

    @functools.wraps(forward)
    def record(*args: Any, decoder_input_ids: Any = None, **options: Any) -> Any:
        prompts.extend(row for row in decoder_input_ids.tolist() if len(row) > 1)
        return forward(*args, decoder_input_ids=decoder_input_ids, **options)

    own: Any = whisper.model.generation_config
    if kind == "published":
        own.task_to_id = {"transcribe": ids["transcribe"], "translate": ids["translate"]}
    if kind == "old":
        own.forced_decoder_ids = [[1, None], [2, ids["transcribe"]]]
        own.suppress_tokens = own.begin_suppress_tokens = [1, 2, 220]
    if kind == "bare":
        del own.no_timestamps_token_id
    ear = tiny_ear(whisper=whisper)
    whisper.model.forward = record
    transcripts = ear.transcribe_with_language(sounds)
    assert all("<|" not in transcript.text for transcript in transcripts)
    languages = [vocabulary[f"<|{transcript.language}|>"] for transcript in transcripts]
    start = whisper.config.decoder_start_token_id
    expected = [[start, language, ids["transcribe"], ids["notimestamps"]] for language in languages]
    assert prompts[: len(sounds)] == expected
    assert capfd.readouterr() == ("", "")


def test_a_long_sound_keeps_the_language_of_its_first_window(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = tiny_ear(whisper=multilingual_whisper())
    given: list[tuple[str | None, ...]] = []

    def transcribe(
        whisper: Whisper, sounds: Any, languages: tuple[str | None, ...], **_: Any
    ) -> list[Transcript]:
        given.append(languages)
        return [Transcript("hallo", language or "de") for language in languages]

    monkeypatch.setattr("ossicle.ear.transcribe_windows", transcribe)
    window_s = ear.whisper.window_samples / 16_000
    sound = tone(2.5 * window_s)
    (transcript,) = ear.transcribe_with_language([sound])
    assert (transcript.text, transcript.language) == ("hallo hallo hallo", "de")
    lengths = [len(window) / 16_000 for window in split_at_quiet(sound, ear.whisper.window_samples)]
    assert [segment.end_s - segment.start_s for segment in transcript.segments] == pytest.approx(lengths)
    assert [segment.start_s for segment in transcript.segments] == pytest.approx(
        [0.0, lengths[0], sum(lengths[:2])]
    )
    assert given == [(None,), ("de", "de")]
    assert transcript.language_name == "german"
    assert ear.transcribe_with_language([]) == []


@pytest.mark.parametrize("name", ["de", "DE", "de-AT", "de_DE", "German", "german"])
def test_a_language_is_named_by_its_code_or_name(name: str) -> None:
    assert find_language(multilingual_whisper().prompt, name) == "de"


@pytest.mark.parametrize("name", ["fr", "klingon", "", "d", "deu"])
def test_an_unknown_language_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="which this Whisper does not know; expected en, de"):
        find_language(multilingual_whisper().prompt, name)
    with pytest.raises(RequestError, match="expected en"):
        find_language(tiny_whisper().prompt, name)


def test_a_transcript_continues_a_text_and_has_the_given_language() -> None:
    whisper = multilingual_whisper()
    ear, prompts = tiny_ear(whisper=whisper), list[list[int]]()
    forward = whisper.model.forward

    @functools.wraps(forward)
    def record(*args: Any, decoder_input_ids: Any = None, **options: Any) -> Any:
        prompts.extend(row for row in decoder_input_ids.tolist() if len(row) > 1)
        return forward(*args, decoder_input_ids=decoder_input_ids, **options)

    whisper.model.forward = record
    ear.transcribe_with_language([tone(1.0)], languages=["german"], previous=" the cat ")
    with pytest.raises(RequestError, match="1 languages for 2 sounds: expected one for each, or none"):
        ear.transcribe_with_language([tone(1.0)] * 2, languages=["german"])
    names = whisper.tokenizer.convert_ids_to_tokens(prompts[0])
    assert names[0] == "<|startofprev|>"
    assert whisper.tokenizer.decode(prompts[0][1:-4]) == " the cat"
    assert names[-4:] == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    with pytest.raises(RequestError, match=r"prompt holds '<\|de\|>', a control token"):
        ear.transcribe_with_language([tone(1.0)], previous="a <|de|> b")


def test_wrong_inputs_are_clear_errors(query_ear: Ear) -> None:
    with pytest.raises(RequestError, match="messages is"):
        query_ear.chat([])
    with pytest.raises(RequestError, match="messages is"):
        query_ear.stream([])
    with pytest.raises(RequestError, match="'max_tokens' is not an option"):
        query_ear.stream(said(tone(0.5)), max_tokens=5)
    with pytest.raises(AudioError, match=r"nowhere\.wav"):
        query_ear.stream(said("nowhere.wav"))  # ty: ignore[invalid-argument-type]
    with pytest.raises(RequestError, match="the conversation takes"):
        query_ear.chat([{"role": "user", "content": "hello " * 600}])


def test_a_tokenizer_of_another_llm_is_refused() -> None:
    with pytest.raises(CheckpointError, match="tokens, but the LLM has embeddings for 300"):
        tiny_ear(llm=tiny_llama(vocab_size=300, pad_token_id=None, bos_token_id=0, eos_token_id=1))


def test_a_system_prompt_of_the_settings_is_part_of_the_frame() -> None:
    ear = tiny_ear(prompt=PromptSettings(system="answer in spanish."), tokenizer=tiny_tokenizer("llama"))
    assert "answer in spanish." in ear.tokenizer.decode(list(ear.template.frame.prefix))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device is 'tpu', expected cpu or cuda"),
        ("banana", "device is 'banana', expected cpu or cuda"),
        ("meta", "device is 'meta', expected cpu or cuda"),
        ("cuda:99", "No CUDA GPU( 99)? found"),
    ],
)
def test_a_missing_device_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ear.new(EarSettings(), name)


def test_a_gpu_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "empty", raise_no_gpu)
    with pytest.raises(ConfigError, match="No CUDA GPU found; use --device cpu"):
        resolve_device("cuda")


def raise_no_gpu(*_: Any, **__: Any) -> None:
    raise AssertionError("Torch not compiled with CUDA enabled")
