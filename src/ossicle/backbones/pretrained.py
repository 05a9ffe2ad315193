"""The two frozen models of an ear, Whisper and LLM: loaded, and checked to be what an ear needs.

No family is assumed: the checks try out whether an LLM reads embeddings as it reads ids, and never looks ahead.
"""

import contextlib
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from ossicle.audio.waveform import HOP_LENGTH
from ossicle.backbones import ctranslate2_whisper
from ossicle.backbones.causal_lm import extract_causal_lm, get_input_embeddings
from ossicle.backbones.chat_template_file import find_chat_template
from ossicle.backbones.embeds_check import check_reads_embeddings, find_logits
from ossicle.backbones.encoder import FRAMES_PER_POSITION
from ossicle.backbones.model_files import (
    ENCODER,
    LLM,
    ModelFiles,
    find_model,
    format_one_line,
)
from ossicle.backbones.rust_panic import is_rust_panic, silence_rust_panics
from ossicle.backbones.whisper_prompt import WhisperPrompt, mark_control_tokens, read_whisper_prompt
from ossicle.errors import CheckpointError, ConfigError

_ANY_TEXT = "Hello, \u00e9cole 12.5%:\n\t\u597d\u3002 \U0001f642 \u007f"
"""Letters, digits, white space, and characters that many vocabularies lack."""
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Whisper:
    """A Whisper with its tokenizer; the encoder feeds the connector, the decoder writes the cascade's transcripts."""

    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase

    @property
    def config(self) -> WhisperConfig:
        """The model's config."""
        return self.model.config

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """The id of each token of its tokenizer, which takes tens of milliseconds to list."""
        return self.tokenizer.get_vocab()

    @property
    def prompt(self) -> WhisperPrompt:
        """The tokens that its decoder starts with, as its settings are now."""
        return read_whisper_prompt(self.model.generation_config, self.config, self.token_ids)

    @property
    def window_frames(self) -> int:
        """Mel frames of the full window: 3,000 (30 s) in all published Whispers."""
        return self.config.max_source_positions * FRAMES_PER_POSITION

    @property
    def window_samples(self) -> int:
        """Samples of the full window, at 16 kHz."""
        return self.window_frames * HOP_LENGTH


def get_default_device() -> torch.device:
    """Returns the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_device(name: torch.device | str | None) -> torch.device:
    """Returns the device of that name; the default one for None.

    Raises:
        ConfigError: no such device, or none in this machine
    """
    if name is None:
        return get_default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {str(name)!r}, expected cpu or cuda") from error
    if device.type == "meta":
        raise ConfigError("device is 'meta', expected cpu or cuda")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        n_gpus = torch.cuda.device_count()
        if device.type == "cuda" and n_gpus:
            raise ConfigError(
                f"No CUDA GPU {device.index} found, there are {n_gpus}; use --device cuda"
            ) from error
        if device.type == "cuda":
            raise ConfigError("No CUDA GPU found; use --device cpu") from error
        raise ConfigError(
            f"device is {str(name)!r}, which this machine does not have; use --device {get_default_device()}"
        ) from error
    return device


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Returns the dtype of that name; for None the default of frozen models on the device.

    Raises:
        ConfigError: no such dtype, or one that the device does not compute in
    """
    if name is None:
        return get_frozen_dtype(device)
    if name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype is {name!r}, expected float32, bfloat16 or float16")
    dtype: torch.dtype = getattr(torch, name)
    if dtype != torch.float32 and not _computes_in(dtype, device):
        other = "float16" if device.type == "cuda" else "bfloat16"
        raise ConfigError(
            f"This machine's {device.type} does not compute in {name}; use --dtype {other} or float32"
        )
    return dtype


def _computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported()
    if device.type == "cpu" and dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def get_frozen_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype of frozen models: bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_whisper(
    name: str,
    revision: str | None,
    device: torch.device,
    *,
    on_host: bool = False,
    dtype: torch.dtype | None = None,
) -> Whisper:
    """Returns a frozen Whisper by hub id or local folder, also one in CTranslate2's form.

    Args:
        on_host: leaves it in the host's memory, ready to be sharded over several devices
        dtype: of its weights; by default that of frozen models on the device

    Raises:
        CheckpointError: nothing there, not a Whisper, or a damaged one
    """
    files, config = find_model(ENCODER, name, revision)
    _check_is_whisper(name, config)
    tokenizer, dtype = _load_tokenizer(files), dtype or get_frozen_dtype(device)
    if files.is_ctranslate2:
        model = ctranslate2_whisper.load_model(Path(files.path), tokenizer, dtype)
        model = model.requires_grad_(False).eval()
        return Whisper(model=model if on_host else model.to(device), tokenizer=tokenizer)
    model = _load_frozen(files, WhisperForConditionalGeneration, device, dtype, on_host=on_host)
    return Whisper(model=model, tokenizer=tokenizer)


def load_llm(
    name: str,
    revision: str | None,
    device: torch.device,
    *,
    bits: int = 16,
    needs_gradient: bool = True,
    on_host: bool = False,
    dtype: torch.dtype | None = None,
    is_known: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a frozen causal LM and its tokenizer, by hub id or local folder.

    Args:
        bits: 8 or 4 quantizes the weights of its layers
        needs_gradient: whether gradients are to pass through it, as in training
        on_host: leaves it in the host's memory, ready to be sharded over several devices
        dtype: of its weights; by default that of frozen models on the device
        is_known: whether it was checked to read embeddings before, and the caller makes sure that it is that LLM

    Raises:
        CheckpointError: nothing there, not a causal LM, no chat template, or an LLM that does not read embeddings
        ConfigError: 8 or 4 bits, but the library for it is missing or gradients do not pass
    """
    files, config = find_model(LLM, name, revision)
    _check_is_causal_lm(name, config)
    tokenizer = _load_tokenizer(files)
    if tokenizer.chat_template is None:
        expected = (
            "a GGUF with tokenizer.chat_template in its header" if files.gguf else "often called -Instruct"
        )
        raise CheckpointError(
            f"LLM {name!r} has no chat template: use the chat version of the model, {expected}"
        )
    quantized: dict[str, Any] = {}
    dtype, setting = dtype or get_frozen_dtype(device), "train.llm_bits" if needs_gradient else "llm_bits"
    if files.gguf is not None:
        if bits != 16:
            raise ConfigError(
                f"{setting} is {bits}, but the LLM {name!r} is a GGUF file, which is loaded dequantized: leave it out,"
                " or name the model's folder or hub id"
            )
        _check_has_weights(files, config)
        quantized = {**files.gguf.build_model_options(), "config": config}
    elif bits != 16:
        quantization = _build_quantization(bits, device, dtype, setting, needs_gradient=needs_gradient)
        quantized = {"quantization_config": quantization, "device_map": {"": device}}
    model = _load_frozen(files, AutoModelForCausalLM, device, dtype, on_host=on_host, **quantized)
    if files.gguf is not None:
        files.gguf.finish(model, tokenizer)
        model = model if on_host else model.to(device)
    llm = extract_causal_lm(model)
    (find_logits if is_known else check_reads_embeddings)(name, llm)
    if bits != 16 and needs_gradient:
        _check_passes_gradient(llm, bits)
    return llm, tokenizer


def build_meta_whisper(name: str, revision: str | None) -> WhisperForConditionalGeneration:
    """Returns a Whisper on the meta device: shapes without weights, from its config alone.

    Raises:
        CheckpointError: nothing there, or not a Whisper
    """
    _, config = find_model(ENCODER, name, revision)
    _check_is_whisper(name, config)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


def build_meta_llm(name: str, revision: str | None) -> PreTrainedModel:
    """Returns a causal LM on the meta device: shapes without weights, from its config alone.

    Raises:
        CheckpointError: nothing there, or not a causal LM
    """
    _, config = find_model(LLM, name, revision)
    _check_is_causal_lm(name, config)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    return extract_causal_lm(llm.requires_grad_(False).eval())


def load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Returns an LLM's tokenizer, without the LLM.

    Raises:
        CheckpointError: nothing there, or no tokenizer
    """
    files, _ = find_model(LLM, name, revision)
    return _load_tokenizer(files)


def _load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    if files.is_ctranslate2:
        ctranslate2_whisper.check_has_tokenizer(Path(files.path))
    is_local = Path(files.path).is_dir()
    try:
        with silence_rust_panics() if is_local else contextlib.nullcontext():
            tokenizer = files.load(WhisperTokenizer if files.is_ctranslate2 else AutoTokenizer, "tokenizer")
    except CheckpointError as error:
        if is_local and not _has_tokenizer_files(Path(files.path)):
            raise _build_no_tokenizer_error(files) from error
        raise
    tokenizer.name_or_path = files.path
    if files.role == LLM:
        tokenizer.chat_template = find_chat_template(files, tokenizer)
    if files.role == ENCODER:
        mark_control_tokens(tokenizer)
    if files.gguf is not None:
        files.gguf.drop_added_tokens(tokenizer)
    # Some tokenizers load without their files and then hold special tokens only.
    if set(tokenizer.get_vocab()) <= {str(token) for token in tokenizer.added_tokens_decoder.values()}:
        raise _build_no_tokenizer_error(files)
    _check_encodes(files, tokenizer)
    return tokenizer


def _has_tokenizer_files(folder: Path) -> bool:
    found = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    return bool(found - {folder / "tokenizer_config.json"})


def _build_no_tokenizer_error(files: ModelFiles) -> CheckpointError:
    return CheckpointError(
        f"{files.role} {files.name!r} has no tokenizer: expected its files, such as tokenizer.json,"
        " next to the weights"
    )


def _check_encodes(files: ModelFiles, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that loads but fails on text, such as one without a token for unknown words."""
    try:
        with silence_rust_panics():
            tokenizer.decode(tokenizer(_ANY_TEXT, add_special_tokens=False, verbose=False)["input_ids"])
    except BaseException as error:
        if not (isinstance(error, Exception) or is_rust_panic(error)):
            raise
        raise CheckpointError(
            f"{files.role} {files.name!r} has a tokenizer that cannot encode all text ({format_one_line(error)}):"
            " expected the tokenizer that the model was trained with"
        ) from error


def _load_frozen(
    files: ModelFiles,
    auto_class: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    on_host: bool,
    **options: Any,
) -> Any:
    """Returns a frozen model with all its weights, from safetensors only: a pickle can run code.

    Raises:
        CheckpointError: it cannot be loaded, or lacks weights
    """
    model, info = files.load(
        auto_class, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    if absent := sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]):
        raise CheckpointError(
            f"{files.role} {files.name!r} lacks {len(absent)} of the weights of a {type(model).__name__},"
            f" such as {absent[0]}: expected a complete one"
        )
    model = model.requires_grad_(False).eval()
    is_placed = on_host or getattr(model, "is_quantized", False)
    return model if is_placed else model.to(device)


def _check_has_weights(files: ModelFiles, config: PreTrainedConfig) -> None:
    """Refuses a GGUF whose header describes a larger model than the file holds, before that is reserved."""
    assert files.gguf is not None, "only a GGUF is asked about"
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
    n_weights = sum(weight.numel() for weight in llm.parameters())
    if n_weights > files.gguf.n_weights:
        raise CheckpointError(
            f"LLM {files.name!r} has {files.gguf.n_weights} weights, but its header describes a {type(llm).__name__} of"
            f" {n_weights}: expected a complete one"
        )


def _build_quantization(
    bits: int, device: torch.device, dtype: torch.dtype, setting: str, *, needs_gradient: bool
) -> BitsAndBytesConfig:
    for library in ("bitsandbytes", "accelerate"):
        try:
            version(library)
        except PackageNotFoundError as error:
            raise ConfigError(
                f"{setting} is {bits}, which needs {library}, but it is not installed: pip install 'ossicle[quant]', or"
                " leave it out"
            ) from error
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if needs_gradient and device.type == "cpu":
        # The first pass without gradients packs the weights, and all later gradients are wrong.
        raise ConfigError(
            f"{setting} is 4, but on a CPU no gradient passes through 4-bit weights: leave it out, or train on a GPU"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )


def _check_is_whisper(name: str, config: PreTrainedConfig) -> None:
    if not isinstance(config, WhisperConfig):
        raise CheckpointError(
            f"encoder {name!r} is of type {config.model_type!r}, expected a Whisper such as"
            " openai/whisper-small"
        )


def _check_is_causal_lm(name: str, config: PreTrainedConfig) -> None:
    """Refuses a model that is not a causal LM by its config, before gigabytes are loaded."""
    is_known = type(config) in AutoModelForCausalLM._model_mapping
    named = config.architectures if isinstance(config.architectures, list) else []
    architectures = [name for name in named if isinstance(name, str)]
    is_other = architectures and not any(
        re.search("CausalLM|LMHead|ConditionalGeneration", architecture) for architecture in architectures
    )
    if not is_known or is_other or getattr(config, "is_encoder_decoder", False):
        kind = f"a {architectures[0]}" if is_known and architectures else f"of type {config.model_type!r}"
        raise CheckpointError(
            f"LLM {name!r} is {kind}, expected a causal LM such as meta-llama/Llama-3.1-8B-Instruct"
        )


def _check_passes_gradient(llm: PreTrainedModel, bits: int) -> None:
    """Refuses quantized weights without a gradient: on some devices their kernels are for inference only."""
    embeds = get_input_embeddings(llm)(torch.tensor([[1, 2, 3]], device=llm.device)).detach().requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*autograd kernel was not registered")
            llm.base_model(inputs_embeds=embeds).last_hidden_state.sum().backward()
        passes = embeds.grad is not None and bool(embeds.grad.isfinite().all()) and bool(embeds.grad.any())
    except (RuntimeError, UserWarning, NotImplementedError):
        passes = False
    if not passes:
        raise ConfigError(
            f"train.llm_bits is {bits}, but on {llm.device.type} no gradient passes through {bits}-bit weights:"
            " leave it out"
        )
