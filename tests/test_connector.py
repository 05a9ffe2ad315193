"""The connector against transformers' own Whisper decoder, and the laws that each of its forms keeps."""

import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_whisper, tiny_whisper_config
from torch import Tensor, nn

from earshot.config import ConnectorSettings
from earshot.connector import (
    AudioTokens,
    Connector,
    Rate,
    RateHead,
    StackingConnector,
    new_connector,
    slot_shares,
)
from earshot.encoder import Features
from earshot.errors import ConfigError

D_LLM, D_ENCODER, N_POSITIONS = 24, 32, 64
FORMS = ("left", "anchored", "right", "stack")
every_form = pytest.mark.parametrize("form", FORMS)
decoder_forms = pytest.mark.parametrize("form", FORMS[:3])
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


@functools.cache
def pretrained():
    return tiny_whisper(n_mels=8)


def chosen(form: Any, **options: Any) -> ConnectorSettings:
    return ConnectorSettings(form=form, **options)


def connector(form: str, *, starts: bool = True, seed: int = 0, **options: Any) -> Any:
    options = {"n_queries": 20, **options}
    torch.manual_seed(seed)
    made = new_connector(pretrained().config, chosen(form, **options), D_LLM)
    if starts:
        made.start_from(pretrained().model.model.decoder)
    return made.eval()


def features(*lengths: int, seed: int = 0, n_padding: int = 0) -> Features:
    """Encoder states of clips of so many positions, with large numbers where there is padding."""
    n_longest = max(lengths) + n_padding
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(n_longest) < torch.tensor(lengths)[:, None]
    states = torch.full((len(lengths), n_longest, D_ENCODER), 1e3)
    for row, n in enumerate(lengths):
        states[row, :n] = torch.randn(n, D_ENCODER, generator=generator)
    return Features(states=states, mask=mask)


def alone(batch: Features, row: int) -> Features:
    n = int(batch.mask[row].sum())
    return Features(states=batch.states[row : row + 1, :n], mask=batch.mask[row : row + 1, :n])


class Fixed(nn.Module):
    """An end head that says what it was told."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits[: len(hidden), : hidden.shape[1], None]


# The stack


SIZES = {
    "tiny": {"d_model": 48, "n_heads": 6, "encoder_layers": 4, "decoder_layers": 4, "n_mels": 80},
    "turbo": {"d_model": 40, "n_heads": 5, "encoder_layers": 6, "decoder_layers": 4, "n_mels": 128},
    "distilled": {"d_model": 32, "n_heads": 4, "encoder_layers": 4, "decoder_layers": 2, "n_mels": 128},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["right", "left"])
def test_the_stack_is_transformers_own_decoder(size: str, form: str) -> None:
    whisper = tiny_whisper(**SIZES[size])
    decoder = whisper.model.model.decoder
    made = Connector(whisper.config, chosen(form, n_queries=12), D_LLM)
    made.start_from(decoder)
    states = torch.randn(2, 30, whisper.config.d_model)
    audio = made(Features(states, torch.ones(2, 30, dtype=torch.bool)), torch.tensor([11, 3]))
    decoder.set_attn_implementation("eager")  # another computation than the connector's
    hidden = decoder(
        inputs_embeds=made.queries.expand(2, -1, -1), encoder_hidden_states=states, use_cache=False
    ).last_hidden_state
    torch.testing.assert_close(audio.tokens, made.projection(hidden))


@decoder_forms
def test_it_starts_as_the_encoders_own_decoder(form: str) -> None:
    made, decoder = connector(form), pretrained().model.model.decoder
    own = decoder.state_dict()
    copied = {**own, "embed_positions.weight": own["embed_positions.weight"][:20]}
    del copied["embed_tokens.weight"]
    found = {name: weight for name, weight in made.state_dict().items() if name.startswith("layer")}
    found["embed_positions.weight"] = made.positions
    assert found.keys() == copied.keys()
    assert all(torch.equal(found[name], copied[name]) for name in copied)
    assert not any(weight.requires_grad for weight in decoder.parameters())
    assert all(weight.requires_grad for weight in made.parameters())


def test_it_stays_in_float32_beside_a_decoder_in_half() -> None:
    decoder = tiny_whisper(n_mels=8).model.bfloat16().model.decoder
    made = connector("left", starts=False)
    made.start_from(decoder)
    assert all(weight.dtype == torch.float32 for weight in made.parameters())
    assert torch.equal(made.positions, decoder.embed_positions.weight[:20].float())


@decoder_forms
def test_starting_is_random_in_the_queries_alone(form: str) -> None:
    made, again = connector(form), connector(form)
    embeddings = pretrained().model.model.decoder.embed_tokens.weight
    assert torch.equal(made.queries, again.queries)
    assert made.queries.unique(dim=0).shape == made.queries.shape
    assert made.queries.abs().max() < 6 * embeddings.std()
    again.start_from(pretrained().model.model.decoder)
    assert not torch.equal(made.queries, again.queries)


@every_form
def test_random_weights_are_random(form: str) -> None:
    made, other = connector(form, starts=False), connector(form, starts=False, seed=1)
    started, own = connector(form), dict(pretrained().model.model.decoder.named_parameters())
    for name, weight in made.named_parameters():
        if weight.ndim == 1:
            continue
        assert not torch.equal(weight, other.get_parameter(name)), name
        assert name not in own or not torch.equal(weight, own[name]), name
        assert weight.shape == started.get_parameter(name).shape


def test_the_decoder_that_it_starts_from_stays_as_it_is() -> None:
    made = connector("left")
    before = {name: weight.clone() for name, weight in pretrained().model.model.decoder.named_parameters()}
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(1.0)
    after = dict(pretrained().model.model.decoder.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


@decoder_forms
def test_more_queries_than_positions_are_refused(form: str) -> None:
    config = tiny_whisper_config(n_positions=N_POSITIONS)
    new_connector(config, chosen(form, n_queries=N_POSITIONS), D_LLM)
    with pytest.raises(ConfigError, match=r"connector\.n_queries is 65.*64"):
        new_connector(config, chosen(form, n_queries=N_POSITIONS + 1), D_LLM)


# All forms


@every_form
@pytest.mark.parametrize("n_text", [None, [5, 9, 1]], ids=["unknown length", "known length"])
def test_a_batch_gives_what_each_clip_gives_alone(form: str, n_text: list[int] | None) -> None:
    made, batch = connector(form), features(90, 61, 7, n_padding=5)
    lengths = None if n_text is None else torch.tensor(n_text)
    together = made(batch, lengths)
    assert together.tokens.shape[2] == D_LLM
    for row in range(3):
        single = made(alone(batch, row), None if lengths is None else lengths[row : row + 1])
        n = int(single.n_tokens[0])
        assert together.n_tokens[row] == n
        torch.testing.assert_close(together.tokens[row, :n], single.tokens[0, :n])
        if together.end_logits is not None and single.end_logits is not None:
            n_slots = single.end_logits.shape[1]
            torch.testing.assert_close(together.end_logits[row, :n_slots], single.end_logits[0])


@decoder_forms
def test_a_slot_does_not_depend_on_later_queries(form: str) -> None:
    made, batch, n_text = connector(form), features(40), torch.tensor([12])
    before = made(batch, n_text).tokens
    with torch.no_grad():
        made.queries[7] += 1.0
    after = made(batch, n_text).tokens
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


@every_form
def test_every_trained_weight_has_a_gradient(form: str) -> None:
    made = connector(form).train()
    audio: AudioTokens = made(features(60, 31), torch.tensor([7, 19]))
    ends = torch.zeros(()) if audio.end_logits is None else audio.end_logits.square().sum()
    (audio.tokens.square().sum() + ends).backward()
    for name, weight in made.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@every_form
def test_bfloat16(form: str) -> None:
    """Half-precision states and autocast, as in training on a GPU; and then the weights in half as well."""
    made, batch, n_text = connector(form), features(60, 31), torch.tensor([7, 12])
    exact = made(batch, n_text)
    half = Features(batch.states.bfloat16(), batch.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = made(half, n_text)
    autocast.tokens.float().sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in made.parameters())
    whole = made.bfloat16()(half, n_text)
    assert whole.tokens.dtype == torch.bfloat16
    for found in (autocast, whole):
        assert torch.equal(found.n_tokens, exact.n_tokens)
        likeness = torch.cosine_similarity(found.tokens.float(), exact.tokens, dim=-1)
        assert all(row[:n].min() > 0.98 for row, n in zip(likeness, exact.n_tokens, strict=True))


# How many tokens are read


def n_tokens(logits: list[list[float]], *lengths: int, **options) -> list[int]:
    made = connector("left", **options)
    made.end_head = Fixed(*logits)
    return made(features(*lengths)).n_tokens.tolist()


def test_the_first_slot_past_the_end_ends_the_clip() -> None:
    told = [-1.0, -1.0, 0.0, 2.0, -1.0] + [1.0] * 15
    assert n_tokens([told], 200) == [3]


def test_there_is_always_a_token() -> None:
    assert n_tokens([[5.0] * 20], 200) == [1]
    assert n_tokens([[5.0] * 20], 1) == [1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [20, 8, 5, 2]), ({"slots_per_second": 2.0}, [10, 4, 3, 2]), ({"n_queries": 6}, [6, 6, 5, 2])],
)
def test_without_an_end_duration_is_the_cap(options: dict, expected: list[int]) -> None:
    never = [[-1.0] * 20] * 4
    assert n_tokens(never, 200, 50, 25, 1, **options) == expected


@pytest.mark.parametrize("form", ["left", "anchored"])
def test_a_known_length_is_the_length(form: str) -> None:
    audio = connector(form)(features(200, 10), torch.tensor([3, 11]))
    assert audio.n_tokens.tolist() == [3, 11]
    assert audio.tokens.shape == (2, 12, D_LLM)  # one slot more than tokens, to learn the end by
    assert audio.end_logits is not None
    assert audio.end_logits.shape == (2, 12)


@pytest.mark.parametrize("form", ["left", "anchored"])
def test_a_transcript_longer_than_the_queries_fills_them(form: str) -> None:
    audio = connector(form)(features(200, 10), torch.tensor([3, 500]))
    assert audio.n_tokens.tolist() == [3, 20]
    assert audio.tokens.shape == (2, 20, D_LLM)


@pytest.mark.parametrize("n_text", [None, torch.tensor([3, 500])], ids=["unknown length", "known length"])
def test_in_the_published_form_all_slots_are_read(n_text: Tensor | None) -> None:
    audio = connector("right")(features(200, 1), n_text)
    assert audio.n_tokens.tolist() == [20, 20]
    assert audio.tokens.shape == (2, 20, D_LLM)
    assert audio.end_logits is None


def test_stacked_positions_are_as_many_as_there_is_sound() -> None:
    made = connector("stack", n_stacked=8)
    audio = made(features(33, 32, 1, n_padding=9), torch.tensor([1, 2, 3]))
    assert audio.n_tokens.tolist() == [5, 4, 1]
    assert audio.end_logits is None
    assert isinstance(made, StackingConnector)


def test_stacking_is_an_mlp_of_neighbours() -> None:
    made, heard = connector("stack", n_stacked=4), features(8)
    first, second = heard.states[0, :4].flatten(), heard.states[0, 4:].flatten()
    torch.testing.assert_close(made(heard).tokens, made.mlp(torch.stack([first, second]))[None])


# Queries anchored in time


def rate_of(*rows: list[float]) -> Rate:
    return Rate(torch.tensor(rows).log())


log_rates = st.lists(st.floats(-60, 0), min_size=1, max_size=30)


@EXAMPLES
@given(values=log_rates, n=st.integers(1, 40), n_padding=st.integers(0, 5))
def test_a_rate_can_be_stretched_to_any_length(values: list[float], n: int, n_padding: int) -> None:
    """However near to zero it is, and with more tokens than there are positions."""
    log_values = torch.tensor([values + [-torch.inf] * n_padding], requires_grad=True)
    scaled = Rate(log_values).scaled_to(torch.tensor([n]))
    torch.testing.assert_close(scaled.sum(1), torch.tensor([float(n)]))
    assert (scaled >= 0).all()
    assert not scaled[0, len(values) :].any()
    (gradient,) = torch.autograd.grad(scaled[0, 0], log_values)
    assert gradient.isfinite().all()


@EXAMPLES
@given(values=log_rates, n=st.integers(1, 40))
def test_integrate_and_fire(values: list[float], n: int) -> None:
    """Each token weighs one, each position what passes in it, and time never runs backwards."""
    rate = Rate(torch.tensor([values]).double()).scaled_to(torch.tensor([n]))
    shares = slot_shares(rate, n + 2)[0]
    torch.testing.assert_close(shares[:n].sum(1), torch.ones(n).double())
    torch.testing.assert_close(shares[n:], torch.zeros(2, len(values)).double())
    torch.testing.assert_close(shares.sum(0), rate[0])
    centres = shares[:n] @ torch.arange(len(values)).double()
    assert (centres.diff() >= -1e-9).all()
    reached = [row.nonzero()[:, 0] for row in shares[:n] > 1e-9]
    assert all(left.max() <= right.min() for left, right in itertools.pairwise(reached))


def test_shares_are_differentiable() -> None:
    log_values = torch.tensor([[-1.0, -0.3, -2.0, -0.7]], dtype=torch.float64, requires_grad=True)
    length = torch.tensor([3])
    assert torch.autograd.gradcheck(lambda x: slot_shares(Rate(x).scaled_to(length), 3), log_values)


def test_what_passes_by_hand() -> None:
    shares = slot_shares(torch.tensor([[0.5, 0.75, 0.25, 0.75]]), 3)
    expected = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.25, 0.5], [0.0, 0.0, 0.0, 0.25]]
    torch.testing.assert_close(shares, torch.tensor([expected]))


def test_the_count_and_the_end_agree() -> None:
    rate = rate_of([0.5, 0.5, 0.4], [0.75, 0.75, 1.0], [1e-30, 1e-30, 1e-30], [0.9, 0.9, 0.9])
    assert rate.n_tokens().tolist() == [1, 3, 1, 3]
    before_end = (rate.end_logits(6) <= 0).cumprod(1).sum(1)
    assert before_end.clamp(min=1).tolist() == rate.n_tokens().tolist()


def head(bias: float) -> RateHead:
    torch.manual_seed(0)
    made = RateHead(D_ENCODER)
    nn.init.constant_(made.rate.bias, bias)
    return made


def test_the_rate_is_zero_outside_the_clip() -> None:
    batch = features(9, 4, n_padding=3)
    rate = head(0.0)(batch.states, batch.mask)
    values = rate.log_values.exp()
    assert ((values > 0) == batch.mask).all()
    assert (values < 1).all()


@pytest.mark.parametrize(
    ("bias", "expected"), [(-200.0, 1), (200.0, 20)], ids=["no rate", "all there can be"]
)
def test_extreme_rates_give_finite_tokens(bias: float, expected: int) -> None:
    made = connector("anchored")
    made.rate_head = head(bias)
    audio = made(features(200))
    assert audio.n_tokens.tolist() == [expected]
    trained = made(features(3, 2), torch.tensor([12, 1]))  # more tokens than positions
    trained.tokens.square().sum().backward()
    assert trained.tokens.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in made.parameters())


def test_alignment_alone_teaches_the_rate() -> None:
    made = connector("anchored")
    made(features(40), torch.tensor([5])).tokens.square().sum().backward()
    assert made.rate_head.rate.weight.grad.any()
