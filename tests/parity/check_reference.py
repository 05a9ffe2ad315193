"""Compares our connector, student, teacher, loss and gradients with the published implementation's numbers.

    python tests/parity/check_reference.py FIXTURE.npz [--prefix 1,2,3 --suffix 6,7,8,9]

The fixture holds weights, inputs, outputs and gradients of the JAX implementation of DiVA (arXiv 2410.02678);
all sizes are read from it. The prompt's token ids are not in it: --prefix and --suffix give those that it was made with.
Exit status: 0 if everything agrees, 1 if something does not, 2 if the file is missing or is not such a fixture.
"""

import argparse
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from ossicle.backbones.encoder import Features, encode
from ossicle.config import ConnectorSettings
from ossicle.connectors.query import QueryConnector
from ossicle.ear import Ear
from ossicle.errors import DataError
from ossicle.losses import alignment_l2, hidden_l2

LIMITS = {"audio tokens": 1e-6, "hidden states": 1e-5, "loss": 1e-5, "gradients": 1e-5}
"""The largest absolute differences that count as agreement, by kind."""
FLOAT32_EPS = 2.0**-23

DEFAULT_ROUNDINGS = 8
"""How many float32 roundings of a gradient's largest number pass as well, where that is more than the limit.

Gradients of the projection reach 151 in diva_reference_tiny.npz. There float32 numbers lie 1.5e-5 apart, and
the fixture's are 5.5e-5 from the exact gradient (all of it computed in float64): nothing can come within 1e-5
of them but by the same roundings in the same order. All other gradients are within the limit by themselves.
"""

# What weights do not show.
N_HEADS = 4  # in all three models
ROPE_THETA, RMS_NORM_EPS = 500_000.0, 1e-5
PREFIX, SUFFIX = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)
"""Token ids before and after the user's content in diva_reference_tiny.npz."""

Arrays = Mapping[str, Tensor]
Ids = Sequence[int]


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one kind of number; `what` says where."""

    kind: str
    what: str
    value: float
    largest: float
    """The largest number that it was compared with."""

    def limit(self, n_roundings: int) -> float:
        if self.kind != "gradients":
            return LIMITS[self.kind]
        return max(LIMITS[self.kind], n_roundings * FLOAT32_EPS * self.largest)

    def is_within(self, n_roundings: int = 0) -> bool:
        """False for NaN as well."""
        return self.value <= self.limit(n_roundings)


def read_fixture(path: Path) -> Arrays:
    """The fixture's arrays, integers as int64.

    Raises:
        DataError: no such file, or not an archive of arrays
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); expected an .npz fixture"
        ) from error
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a fixture; expected an .npz archive of plain arrays") from error
    return {name: array if array.is_floating_point() else array.long() for name, array in arrays.items()}


class Reference(Ear):
    """An ear with the fixture's weights; its prompt is a constant frame, so it needs no tokenizer."""

    def __init__(self, arrays: Arrays, prefix: Ids = PREFIX, suffix: Ids = SUFFIX) -> None:
        self.llm = _llm(arrays)
        self.encoder, decoder = _whisper(arrays)
        n_queries = len(arrays["query_tokens"])
        settings = ConnectorSettings(form="diva", n_queries=n_queries)
        self.connector: QueryConnector = QueryConnector(
            decoder.config, settings, len(arrays["projection.weight"])
        )
        self.connector.init_from_decoder(decoder)
        self.connector.projection.load_state_dict(_below(arrays, "projection."))
        with torch.no_grad():
            self.connector.queries.copy_(arrays["query_tokens"])
        self.template: Any = SimpleNamespace(frame=(prefix, suffix))

    def encode_mel(self, mel: Tensor) -> Features:
        """The encoder's states for full windows."""
        return encode(self.encoder, mel, torch.full((len(mel),), mel.shape[2]))


def _below(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _n_layers(arrays: Arrays, prefix: str) -> int:
    return 1 + max(int(name.split(".")[0]) for name in _below(arrays, prefix))


def _whisper(arrays: Arrays) -> tuple[WhisperEncoder, WhisperDecoder]:
    n_vocabulary, d_model = arrays["connector.embed_tokens.weight"].shape
    config = WhisperConfig(
        vocab_size=n_vocabulary,
        d_model=d_model,
        num_mel_bins=arrays["mel"].shape[1],
        max_source_positions=arrays["mel"].shape[2] // 2,
        max_target_positions=len(arrays["connector.embed_positions.weight"]),
        encoder_layers=_n_layers(arrays, "encoder.layers."),
        decoder_layers=_n_layers(arrays, "connector.layers."),
        encoder_ffn_dim=len(arrays["encoder.layers.0.fc1.weight"]),
        decoder_ffn_dim=len(arrays["connector.layers.0.fc1.weight"]),
        encoder_attention_heads=N_HEADS,
        decoder_attention_heads=N_HEADS,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    encoder, decoder = WhisperEncoder(config).eval(), WhisperDecoder(config).eval()
    # The encoder's positions are sinusoids, which transformers computes and the fixture need not hold.
    sinusoids = {"embed_positions.weight": encoder.embed_positions.weight}
    encoder.load_state_dict({**sinusoids, **_below(arrays, "encoder.")})
    decoder.load_state_dict(_below(arrays, "connector."))
    return encoder.requires_grad_(False), decoder


def _llm(arrays: Arrays) -> LlamaForCausalLM:
    n_vocabulary, d_model = arrays["decoder.model.embed_tokens.weight"].shape
    d_head = len(arrays["decoder.model.layers.0.self_attn.q_proj.weight"]) // N_HEADS
    config = LlamaConfig(
        vocab_size=n_vocabulary,
        hidden_size=d_model,
        intermediate_size=len(arrays["decoder.model.layers.0.mlp.gate_proj.weight"]),
        num_hidden_layers=_n_layers(arrays, "decoder.model.layers."),
        num_attention_heads=N_HEADS,
        num_key_value_heads=len(arrays["decoder.model.layers.0.self_attn.k_proj.weight"]) // d_head,
        rms_norm_eps=RMS_NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
    )
    llm = LlamaForCausalLM(config).eval()
    llm.load_state_dict(_below(arrays, "decoder."))
    return llm.requires_grad_(False)


def compare(arrays: Arrays, prefix: Ids = PREFIX, suffix: Ids = SUFFIX) -> list[Difference]:
    """The largest differences between the fixture's numbers and ours.

    Raises:
        DataError: arrays that are missing or do not fit together
    """
    try:
        ear = Reference(arrays, prefix, suffix)
        audio = ear.connector(ear.encode_mel(arrays["mel"]))
        n_text = arrays["reversed_mask"].sum(1).long()
        text = ear.embed(arrays["input_ids"])
        student = ear.llm_states(audio.tokens, audio.n_tokens.tolist(), [1] * len(n_text))[:, 0]
        teacher = ear.llm_states(text, n_text.tolist(), [1] * len(n_text))[:, 0]
        hidden = hidden_l2(student[:, None], teacher[:, None])
        align = alignment_l2(audio.tokens, text, audio.n_tokens, n_text, ear.connector.alignment)
        (hidden + align).backward()
        return [
            _difference("audio tokens", "of all clips", audio.tokens, arrays["virtual"]),
            _difference("hidden states", "student", student, arrays["audio_pred"]),
            _difference("hidden states", "teacher", teacher, arrays["text_pred"]),
            _difference("loss", "hidden", hidden, arrays["kl"].mean()),
            _difference("loss", "align", align, _align(arrays)),
            _difference("loss", "whole", hidden + align, arrays["loss"]),
            *_gradients(ear.connector, _below(arrays, "grad/")),
        ]
    except KeyError as error:
        raise DataError(f"the fixture has no array {error}; see the format in its README") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"the fixture's arrays do not fit together: {' '.join(str(error).split())}"
        ) from error


def _align(arrays: Arrays) -> Tensor:
    counted = arrays["reversed_mask"]
    return (arrays["tal"] * counted).sum() / counted.sum()


def _gradients(connector: QueryConnector, expected: dict[str, Tensor]) -> list[Difference]:
    """Ours by the names that the decoder has them under in transformers."""
    if not expected:
        raise KeyError("grad/*")
    ours: dict[str, Any] = {_reference_name(n): weight.grad for n, weight in connector.named_parameters()}
    # We have as many positions as queries, and no token embeddings: nothing else may have a gradient.
    positions = torch.zeros_like(expected["connector.embed_positions.weight"])
    positions[: len(connector.positions)] = ours["connector.embed_positions.weight"]
    ours["connector.embed_positions.weight"] = positions
    ours["connector.embed_tokens.weight"] = torch.zeros_like(expected["connector.embed_tokens.weight"])
    if odd := sorted(ours.keys() ^ expected.keys()):
        raise ValueError(f"gradients of one side only: {', '.join(odd)}")
    return [_difference("gradients", name, ours[name], expected[name]) for name in sorted(expected)]


def _reference_name(name: str) -> str:
    if name.startswith("projection."):
        return name
    ours = {"queries": "query_tokens", "positions": "connector.embed_positions.weight"}
    return ours.get(name, f"connector.{name}")


def _difference(kind: str, what: str, ours: Tensor | None, expected: Tensor) -> Difference:
    if ours is None or ours.shape != expected.shape:
        raise ValueError(f"{kind} ({what}) has another shape than {tuple(expected.shape)}")
    return Difference(kind, what, (ours - expected).abs().max().item(), expected.abs().max().item())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fixture", type=Path, metavar="FIXTURE.npz")
    parser.add_argument(
        "--roundings",
        type=int,
        default=DEFAULT_ROUNDINGS,
        metavar="N",
        help="accept in gradients N float32 roundings of the largest number, where that is more than the limit",
    )
    for name, default in (("prefix", PREFIX), ("suffix", SUFFIX)):
        parser.add_argument(
            f"--{name}",
            type=_parse_ids,
            default=default,
            metavar="ID,ID,...",
            help=f"the prompt's token ids in the fixture's {name}; {','.join(map(str, default))} if not given",
        )
    given = parser.parse_args(arguments)
    try:
        differences = compare(read_fixture(given.fixture), given.prefix, given.suffix)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(differences, given.roundings)
    return 0 if all(found.is_within(given.roundings) for found in differences) else 1


def _parse_ids(text: str) -> Ids:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids: expected such as 1,2,3")
    return tuple(map(int, parts))


def print_table(differences: list[Difference], n_roundings: int) -> None:
    """Every comparison, and the largest difference of each kind."""
    print(f"{'largest absolute difference':<62} {'':>7} {'limit':>7}")
    for found in differences:
        verdict = "" if found.is_within(n_roundings) else "  TOO LARGE"
        limit = found.limit(n_roundings)
        print(f"{found.kind:<13} {found.what:<48} {found.value:7.1e} {limit:7.1e}{verdict}")
    for kind in LIMITS:
        values = [found.value for found in differences if found.kind == kind]
        print(f"{kind}: {np.max(values):.1e}")


if __name__ == "__main__":
    sys.exit(main())
