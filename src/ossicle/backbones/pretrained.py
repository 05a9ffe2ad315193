"""The two frozen models of an ear: where they come from, and what they must be.

No family is assumed: whether an LLM reads embeddings as it reads ids, and never looks ahead, is tried out.
"""

import contextlib
import re
import threading
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, get_session
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging

from ossicle.audio.waveform import HOP_LENGTH
from ossicle.backbones.encoder import FRAMES_PER_POSITION
from ossicle.errors import CheckpointError, ConfigError

POCKET = Path(__file__).parents[1] / "pocket"
"""The embedded models and speech."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT_S = 10.0
# What transformers raises, by the kind of file that is missing, damaged or of something else.
_UNREADABLE = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError)
SAME_READING = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far two ways through the same numbers may be apart; what is really another number is off by far more."""


@dataclass(frozen=True)
class Whisper:
    """A Whisper with its tokenizer: the encoder listens, the decoder writes the cascade's transcripts."""

    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase

    @property
    def config(self) -> WhisperConfig:
        """Its sizes."""
        return self.model.config

    @property
    def is_multilingual(self) -> bool:
        """Whether it writes more languages than English."""
        return bool(getattr(self.model.generation_config, "is_multilingual", False))

    @property
    def window_frames(self) -> int:
        """Mel frames of the full window: 3,000 (30 s) in all published Whispers."""
        return self.config.max_source_positions * FRAMES_PER_POSITION

    @property
    def window_samples(self) -> int:
        """Samples of the full window, at 16 kHz."""
        return self.window_frames * HOP_LENGTH


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_device(name: torch.device | str | None) -> torch.device:
    """The device of that name; the default one for None.

    Raises:
        ConfigError: no such device, or none in this machine
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f'device is {str(name)!r}, which is not here, expected "cpu" or a GPU such as "cuda"'
        ) from error
    return device


def frozen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def locate(name: str) -> str:
    """The folder of an embedded model for "pocket/...", any other name as it is (hub id or local folder)."""
    if name.startswith("pocket/"):
        return str(POCKET / name.removeprefix("pocket/"))
    return str(Path(name).expanduser()) if name.startswith("~") else name


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Generator[None]:
    """Keeps transformers from its warnings, and from progress bars unless wanted, while the block runs.

    What the process had set before is back afterwards, from whatever number of threads this is used.
    """
    with _Quiet.lock:
        if _Quiet.depth == 0:
            _Quiet.before = (
                logging.get_verbosity(),
                logging.is_progress_bar_enabled(),
                are_progress_bars_disabled(),
            )
            logging.set_verbosity_error()
        if not bars and logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
        _Quiet.depth += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.depth -= 1
            if _Quiet.depth == 0:
                verbosity, had_bars, hub_had_none = _Quiet.before
                logging.set_verbosity(verbosity)
                if had_bars and not logging.is_progress_bar_enabled():
                    logging.enable_progress_bar()
                    if hub_had_none:
                        disable_progress_bars()


class _Quiet:
    """How many blocks are quiet now, and how loud it was before the first."""

    lock = threading.Lock()
    depth = 0
    before = (logging.WARNING, True, False)


@dataclass(frozen=True)
class _Source:
    """Where a base is read from, once it is clear that there is something."""

    role: str
    name: str
    place: str
    options: dict[str, Any]

    def read(self, kind: Any, **options: Any) -> Any:
        """What `kind.from_pretrained` gives; never code from the folder, never a prompt to run it.

        Raises:
            CheckpointError: whatever is wrong with it
        """
        try:
            with quiet(bars=not Path(self.place).is_dir()):
                return kind.from_pretrained(self.place, trust_remote_code=False, **self.options, **options)
        except _UNREADABLE as error:
            if "trust_remote_code" in str(error):
                raise CheckpointError(
                    f"{self.role} {self.name!r} brings code of its own, which is not run: expected a model"
                    " that transformers knows"
                ) from error
            raise CheckpointError(
                f"{self.role} {self.name!r} cannot be loaded: {_one_line(error)}"
            ) from error
        except (SafetensorError, EOFError) as error:
            raise CheckpointError(
                f"{self.role} {self.name!r} is damaged: {_one_line(error)}; copy or download it again"
            ) from error

    def read_model(self, kind: Any, device: torch.device, *, on_host: bool = False, **options: Any) -> Any:
        """A frozen model, complete, from safetensors only: a pickle can run anything.

        Raises:
            CheckpointError: whatever is wrong with it
        """
        model, info = self.read(
            kind, dtype=frozen_dtype(device), use_safetensors=True, output_loading_info=True, **options
        )
        if absent := sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]):
            raise CheckpointError(
                f"{self.role} {self.name!r} lacks {len(absent)} of the weights of a {type(model).__name__},"
                f" such as {absent[0]}: expected a complete one"
            )
        model = model.requires_grad_(False).eval()
        is_placed = on_host or getattr(model, "is_quantized", False)
        return model if is_placed else model.to(device)


def _find(role: str, name: str, revision: str | None) -> tuple[_Source, PreTrainedConfig]:
    """Where a base is and what it says it is.

    Raises:
        CheckpointError: nothing there, or the hub is out of reach
    """
    place = locate(name)
    options: dict[str, Any] = {}
    if name and Path(place).is_dir():
        if not (Path(place) / "config.json").is_file():
            raise CheckpointError(
                f"{role} {name!r} is a folder without a config.json, expected a Hugging Face model"
            )
    elif _is_local(name):
        raise CheckpointError(
            f"{role} {name!r}: there is no such folder, expected a local folder or a hub id"
        )
    else:
        options = {"revision": revision or "main", "local_files_only": not _is_hub_reachable()}
    source = _Source(role, name, place, options)
    try:
        return source, source.read(AutoConfig)
    except CheckpointError as error:
        if options.get("local_files_only"):
            raise CheckpointError(
                f"{role} {name!r} is neither a local folder nor in the local cache, and"
                f" {constants.ENDPOINT} cannot be reached: connect, or give the path of a local copy"
            ) from error
        raise


def _is_local(name: str) -> bool:
    """Whether a name that is no folder was meant to be one: no hub id, or said to lie in a folder that is."""
    is_hub_id = _HUB_ID.fullmatch(name) and not name.startswith((".", "pocket/"))
    return not is_hub_id or ("/" in name and Path(name).parent.is_dir())


def _is_hub_reachable() -> bool:
    """Whether the hub answers at all: asked once, where transformers would ask six times for each file."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # whatever the HTTP library of the day calls it
        return False
    return True


def load_whisper(name: str, revision: str | None, device: torch.device, *, on_host: bool = False) -> Whisper:
    """A frozen Whisper by hub id or local folder.

    Args:
        on_host: leaves it in the host's memory, ready to be spread over several devices

    Raises:
        CheckpointError: nothing there, not a Whisper, or a damaged one
    """
    source, config = _find("encoder", name, revision)
    _check_is_whisper(name, config)
    tokenizer = _read_tokenizer(source)
    model = source.read_model(WhisperForConditionalGeneration, device, on_host=on_host)
    return Whisper(model=model, tokenizer=tokenizer)


def load_llm(
    name: str, revision: str | None, device: torch.device, *, bits: int = 16, on_host: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen causal LM and its tokenizer, by hub id or local folder.

    Args:
        bits: 8 or 4 rounds the weights of its layers
        on_host: leaves it in the host's memory, ready to be spread over several devices

    Raises:
        CheckpointError: nothing there, not a causal LM, no chat template, or nothing that reads embeddings
        ConfigError: bits, but no library that rounds to them
    """
    source, config = _find("LLM", name, revision)
    _check_is_causal_lm(name, config)
    tokenizer = _read_tokenizer(source)
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"LLM {name!r} has no chat template: take the model's chat version, often called -Instruct"
        )
    rounded = (
        {} if bits == 16 else {"quantization_config": _rounding(bits, device), "device_map": {"": device}}
    )
    llm = _language_part(source.read_model(AutoModelForCausalLM, device, on_host=on_host, **rounded))
    _check_reading(name, llm)
    if bits != 16:
        _check_gradient(llm, bits)
    return llm, tokenizer


def outline_whisper(name: str, revision: str | None) -> WhisperForConditionalGeneration:
    """A Whisper's shapes, on the meta device: of all that lies there its config alone is read.

    Raises:
        CheckpointError: nothing there, or not a Whisper
    """
    _, config = _find("encoder", name, revision)
    _check_is_whisper(name, config)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


def outline_llm(name: str, revision: str | None) -> PreTrainedModel:
    """A causal LM's shapes, on the meta device: of all that lies there its config alone is read.

    Raises:
        CheckpointError: nothing there, or not a causal LM
    """
    _, config = _find("LLM", name, revision)
    _check_is_causal_lm(name, config)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    return _language_part(llm.requires_grad_(False).eval())


def read_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """An LLM's tokenizer, without the LLM.

    Raises:
        CheckpointError: nothing there, or no tokenizer
    """
    source, _ = _find("LLM", name, revision)
    return _read_tokenizer(source)


def _rounding(bits: int, device: torch.device) -> BitsAndBytesConfig:
    for library in ("bitsandbytes", "accelerate"):
        try:
            version(library)
        except PackageNotFoundError as error:
            raise ConfigError(
                f"train.llm_bits is {bits}, for which {library} is needed, but it is not installed: pip install"
                " 'ossicle[quant]', or leave train.llm_bits out"
            ) from error
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if (
        device.type == "cpu"
    ):  # after a pass without gradients it packs the weights, and gradients are wrong from then on
        raise ConfigError(
            "train.llm_bits is 4, but on a CPU no gradient passes weights of so many bits: leave it out, or train on a"
            " GPU"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=frozen_dtype(device)
    )


def _read_tokenizer(source: _Source) -> PreTrainedTokenizerBase:
    tokenizer = source.read(AutoTokenizer)
    # Without its files, some tokenizers come up with special tokens and nothing else.
    if set(tokenizer.get_vocab()) <= {str(token) for token in tokenizer.added_tokens_decoder.values()}:
        raise CheckpointError(
            f"{source.role} {source.name!r} has no tokenizer: expected its files, such as tokenizer.json,"
            " beside the weights"
        )
    return tokenizer


def _check_is_whisper(name: str, config: PreTrainedConfig) -> None:
    if not isinstance(config, WhisperConfig):
        raise CheckpointError(
            f"encoder {name!r} is of type {config.model_type!r}, expected a Whisper such as"
            " openai/whisper-small"
        )


def _check_is_causal_lm(name: str, config: PreTrainedConfig) -> None:
    """Refuse by its config what is no causal LM, before gigabytes are read."""
    is_known = type(config) in AutoModelForCausalLM._model_mapping
    made = config.architectures or []
    is_other = made and not any(re.search("CausalLM|LMHead|ConditionalGeneration", name) for name in made)
    if not is_known or is_other or getattr(config, "is_encoder_decoder", False):
        what = f"a {made[0]}" if is_known and made else f"of type {config.model_type!r}"
        raise CheckpointError(
            f"LLM {name!r} is {what}, expected a causal LM such as meta-llama/Llama-3.1-8B-Instruct"
        )


def _language_part(model: PreTrainedModel) -> PreTrainedModel:
    """The LLM within a model that also sees, as one of its own, with the very same weights.

    What sees is not needed, and transformers generates from embeddings with the LLM alone.
    """
    config = model.config.get_text_config(decoder=True)
    if config is model.config or type(config) not in AutoModelForCausalLM._model_mapping:
        return model
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
    inner = model.get_decoder()
    if type(inner) is not type(llm.base_model):
        return model
    setattr(llm, llm.base_model_prefix, inner)
    llm.set_output_embeddings(model.get_output_embeddings())
    llm.generation_config = model.generation_config
    llm.config._commit_hash = getattr(model.config, "_commit_hash", None)
    return llm.requires_grad_(False).eval()


@torch.inference_mode()
def _check_reading(name: str, llm: PreTrainedModel) -> None:
    """Refuse an LLM for which embeddings are not the same as ids, or which looks ahead, by trying both."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 0]], device=llm.device)
    try:
        by_ids = llm(input_ids=ids).logits.float()
        embeds = embeddings(llm)(ids)
        by_embeds = llm(inputs_embeds=embeds).logits.float()
        n_states = llm.base_model(inputs_embeds=embeds).last_hidden_state.shape[2]
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"LLM {name!r} cannot be given embeddings ({_one_line(error)}), expected one whose layers need"
            " nothing else"
        ) from error
    same = SAME_READING[llm.dtype] * float(by_ids.abs().max())
    if n_states != embeds.shape[2] or (by_ids - by_embeds).abs().max() > same:
        raise CheckpointError(
            f"LLM {name!r} does not read embeddings as it reads ids (its layers take in ids as well), so it"
            " cannot hear: expected one whose layers need nothing else"
        )
    if (by_ids[0, :2] - by_ids[1, :2]).abs().max() > same:
        raise CheckpointError(
            f"LLM {name!r} reads in both directions, expected a causal LM, which never looks ahead"
        )


def _check_gradient(llm: PreTrainedModel, bits: int) -> None:
    """Refuse rounded weights that no gradient passes, as some devices multiply by them for answers only."""
    embeds = embeddings(llm)(torch.tensor([[1, 2, 3]], device=llm.device)).detach().requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*autograd kernel was not registered")
            llm.base_model(inputs_embeds=embeds).last_hidden_state.sum().backward()
        passes = embeds.grad is not None and bool(embeds.grad.isfinite().all()) and bool(embeds.grad.any())
    except (RuntimeError, UserWarning, NotImplementedError):
        passes = False
    if not passes:
        raise ConfigError(
            f"train.llm_bits is {bits}, but on {llm.device.type} no gradient passes weights of so many bits:"
            " leave it out"
        )


def embeddings(llm: PreTrainedModel) -> nn.Embedding:
    """The LLM's table of input embeddings; calling it scales them where the family does."""
    table = llm.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"its input embeddings are a {type(table).__name__}")
    return table


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The list that holds most of a model's weights, whatever the family calls it."""

    def n_weights(layers: nn.ModuleList) -> int:
        return sum(weight.numel() for weight in layers.parameters())

    return max((each for each in model.modules() if isinstance(each, nn.ModuleList)), key=n_weights)


def embed(llm: PreTrainedModel, ids: Any) -> Float[Tensor, "... D"]:
    """What the LLM's first layer is given for these ids, any scaling of the embeddings included."""
    table = embeddings(llm)
    return table(torch.as_tensor(ids, dtype=torch.long, device=table.weight.device))


def next_token_logits(llm: PreTrainedModel, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """The LLM's logits from its final states: its head, and what Gemma, Cohere and Granite do behind it."""
    head = llm.get_output_embeddings()
    assert head is not None, "a causal LM has a head"
    logits = head(states)
    config = llm.config.get_text_config(decoder=True)
    logits = (
        logits
        * (getattr(config, "logit_scale", None) or 1.0)
        / (getattr(config, "logits_scaling", None) or 1.0)
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def _one_line(error: BaseException) -> str:
    """An error's first paragraph, on one line and not too long."""
    text = " ".join(str(error).strip().split("\n\n", 1)[0].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
