"""The connectors against transformers' own Whisper decoder, and laws that hold for every form."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import settings
from support.seeding import seeded
from support.tiny_models import tiny_whisper, tiny_whisper_config
from torch import Tensor, nn

from ossicle.backbones.encoder import Features
from ossicle.config import ConnectorSettings
from ossicle.connectors import AudioTokens, Transcripts, build_connector
from ossicle.connectors.anchored import AnchoredConnector, TokenDetector
from ossicle.connectors.frame_stacking import FrameStackingConnector
from ossicle.connectors.query import QueryConnector
from ossicle.errors import ConfigError

D_LLM, D_ENCODER, N_POSITIONS = 24, 32, 64
FORMS = ("query", "autoregressive", "anchored", "diva", "stack")
every_form = pytest.mark.parametrize("form", FORMS)
decoder_forms = pytest.mark.parametrize("form", FORMS[:4])
EXAMPLES = settings(max_examples=25)


@functools.cache
def pretrained():
    return tiny_whisper(n_mels=8)


def connector_settings(form: Any, **options: Any) -> ConnectorSettings:
    return ConnectorSettings(form=form, **options)


def build(form: str, *, starts: bool = True, seed: int = 0, **options: Any) -> Any:
    options = {"n_queries": 20, **options}
    with seeded(seed):
        connector = build_connector(pretrained().config, connector_settings(form, **options), D_LLM)
        if starts:
            connector.init_from_decoder(pretrained().model.model.decoder)
    return connector.eval()


def features(*lengths: int, seed: int = 0, n_padding: int = 0) -> Features:
    """Encoder features of clips of these lengths in positions, with large values in the padding."""
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


def transcripts_of(*lengths: int, seed: int = 0) -> Transcripts:
    """Transcripts of these lengths, of seven different tokens."""
    generator = torch.Generator().manual_seed(seed)
    return Transcripts(
        n_tokens=torch.tensor(lengths),
        targets=torch.randint(7, (len(lengths), max(lengths)), generator=generator),
        candidates=torch.randn(7, D_LLM, generator=generator),
    )


def one_of(transcripts: Transcripts, row: int) -> Transcripts:
    """The transcript of one clip, as a batch of its own."""
    n = transcripts.n_tokens[row : row + 1]
    return Transcripts(n, transcripts.targets[row : row + 1, : int(n)], transcripts.candidates)


class Fixed(nn.Module):
    """A head with fixed logits."""

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
@pytest.mark.parametrize("form", ["diva", "query"])
def test_the_decoder_equals_transformers_own(size: str, form: str) -> None:
    whisper = tiny_whisper(**SIZES[size])
    decoder = whisper.model.model.decoder
    connector = QueryConnector(whisper.config, connector_settings(form, n_queries=12), D_LLM)
    connector.init_from_decoder(decoder)
    states = torch.randn(2, 30, whisper.config.d_model)
    audio = connector(Features(states, torch.ones(2, 30, dtype=torch.bool)), transcripts_of(11, 3))
    decoder.set_attn_implementation("eager")  # another computation than the connector's
    hidden = decoder(
        inputs_embeds=connector.queries.expand(2, -1, -1), encoder_hidden_states=states, use_cache=False
    ).last_hidden_state
    torch.testing.assert_close(audio.tokens, connector.projection(hidden))


@decoder_forms
def test_init_copies_the_encoders_own_decoder(form: str) -> None:
    connector, decoder = build(form), pretrained().model.model.decoder
    own = decoder.state_dict()
    copied = {**own, "embed_positions.weight": own["embed_positions.weight"][:20]}
    del copied["embed_tokens.weight"]
    found = {name: weight for name, weight in connector.state_dict().items() if name.startswith("layer")}
    found["embed_positions.weight"] = connector.positions
    assert found.keys() == copied.keys()
    assert all(torch.equal(found[name], copied[name]) for name in copied)
    assert not any(weight.requires_grad for weight in decoder.parameters())
    assert all(weight.requires_grad for weight in connector.parameters())


@pytest.mark.parametrize(
    ("n_layers", "taken"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (4, [0, 2, 3, 5]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_fewer_layers_are_taken_at_even_distances(n_layers: int, taken: list[int]) -> None:
    whisper = tiny_whisper(decoder_layers=6)
    decoder = whisper.model.model.decoder
    connector = AnchoredConnector(
        whisper.config, connector_settings("anchored", n_queries=8, n_layers=n_layers), D_LLM
    )
    connector.init_from_decoder(decoder)
    own, layers = decoder.state_dict(), connector.state_dict()
    assert len(connector.layers) == n_layers
    for place, number in enumerate(taken):
        assert torch.equal(layers[f"layers.{place}.fc1.weight"], own[f"layers.{number}.fc1.weight"])


def test_more_layers_than_the_decoder_has_are_refused() -> None:
    n = pretrained().config.decoder_layers
    with pytest.raises(ConfigError, match=rf"connector.n_layers is {n + 1}, but .* has {n}; expected"):
        build("query", n_layers=n + 1)


def test_weights_stay_float32_if_the_decoder_is_half_precision() -> None:
    decoder = tiny_whisper(n_mels=8).model.bfloat16().model.decoder
    connector = build("query", starts=False)
    connector.init_from_decoder(decoder)
    assert all(weight.dtype == torch.float32 for weight in connector.parameters())
    assert torch.equal(connector.positions, decoder.embed_positions.weight[:20].float())


@decoder_forms
def test_init_is_random_in_the_queries_only(form: str) -> None:
    connector, again = build(form), build(form)
    embeddings = pretrained().model.model.decoder.embed_tokens.weight
    assert torch.equal(connector.queries, again.queries)
    assert connector.queries.unique(dim=0).shape == connector.queries.shape
    assert connector.queries.abs().max() < 6 * embeddings.std()
    again.init_from_decoder(pretrained().model.model.decoder)
    assert not torch.equal(connector.queries, again.queries)


@every_form
def test_random_weights_are_random(form: str) -> None:
    connector, other = build(form, starts=False), build(form, starts=False, seed=1)
    started, own = build(form), dict(pretrained().model.model.decoder.named_parameters())
    for name, weight in connector.named_parameters():
        if weight.ndim == 1:
            continue
        assert not torch.equal(weight, other.get_parameter(name)), name
        assert name not in own or not torch.equal(weight, own[name]), name
        assert weight.shape == started.get_parameter(name).shape


def test_init_leaves_the_decoder_unchanged() -> None:
    connector = build("query")
    before = {name: weight.clone() for name, weight in pretrained().model.model.decoder.named_parameters()}
    with torch.no_grad():
        for weight in connector.parameters():
            weight.add_(1.0)
    after = dict(pretrained().model.model.decoder.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


@decoder_forms
def test_more_queries_than_positions_are_refused(form: str) -> None:
    config = tiny_whisper_config(n_positions=N_POSITIONS)
    build_connector(config, connector_settings(form, n_queries=N_POSITIONS), D_LLM)
    with pytest.raises(ConfigError, match=r"connector\.n_queries is 65.*64"):
        build_connector(config, connector_settings(form, n_queries=N_POSITIONS + 1), D_LLM)


def test_each_slot_sees_the_token_before_it() -> None:
    """Against transformers' own decoder without a cache: the transcript's token, or else the last audio token."""
    connector, batch, transcripts = build("autoregressive"), features(60), transcripts_of(9)
    words = transcripts.candidates
    decoder = tiny_whisper(n_mels=8).model.model.decoder
    decoder.set_attn_implementation("eager")

    def decoded(before: Tensor) -> Tensor:
        logits = nn.functional.pad(connector.feedback(before), (0, 0, 1, 0))
        inputs = (connector.queries[: logits.shape[1]] + logits).expand(1, -1, -1)
        states = decoder(inputs_embeds=inputs, encoder_hidden_states=batch.states, use_cache=False)
        return connector.projection(states.last_hidden_state)

    nn.init.constant_(connector.end_head.bias, -100.0)
    tokens = connector(batch).tokens
    assert tokens.shape[1] > 5
    torch.testing.assert_close(tokens, decoded(tokens[:, :-1]))
    torch.testing.assert_close(connector(batch, transcripts).tokens, decoded(words[transcripts.targets]))


# All forms


@every_form
@pytest.mark.parametrize("transcripts", [None, transcripts_of(5, 9, 1)], ids=["unknown", "known"])
def test_a_batch_equals_each_clip_alone(form: str, transcripts: Transcripts | None) -> None:
    connector, batch = build(form), features(90, 61, 7, n_padding=5)
    together = connector(batch, transcripts)
    assert together.tokens.shape[2] == D_LLM
    for row in range(3):
        single = connector(alone(batch, row), None if transcripts is None else one_of(transcripts, row))
        n = int(single.n_tokens[0])
        assert together.n_tokens[row] == n
        torch.testing.assert_close(together.tokens[row, :n], single.tokens[0, :n])
        if together.end_logits is not None and single.end_logits is not None:
            n_slots = single.end_logits.shape[1]
            torch.testing.assert_close(together.end_logits[row, :n_slots], single.end_logits[0])
        if together.log_likelihood is not None and single.log_likelihood is not None:
            torch.testing.assert_close(together.log_likelihood[row], single.log_likelihood[0])


@decoder_forms
def test_a_slot_does_not_depend_on_later_queries(form: str) -> None:
    connector, batch, transcripts = build(form), features(40), transcripts_of(12)
    before = connector(batch, transcripts).tokens
    with torch.no_grad():
        connector.queries[7] += 1.0
    after = connector(batch, transcripts).tokens
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


@every_form
def test_every_trained_weight_has_a_gradient(form: str) -> None:
    connector = build(form).train()
    audio: AudioTokens = connector(features(60, 31), transcripts_of(7, 19))
    others = (audio.end_logits, audio.log_likelihood)
    terms = [term.square().sum() for term in (audio.tokens, *others) if term is not None]
    torch.stack(terms).sum().backward()
    for name, weight in connector.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@every_form
def test_bfloat16(form: str) -> None:
    """Half-precision features and autocast, as in training on a GPU; then half-precision weights too."""
    connector, batch, transcripts = build(form), features(60, 31), transcripts_of(7, 12)
    exact = connector(batch, transcripts)
    half = Features(batch.states.bfloat16(), batch.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = connector(half, transcripts)
    autocast.tokens.float().sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in connector.parameters())
    whole = connector.bfloat16()(half, transcripts)
    assert whole.tokens.dtype == torch.bfloat16
    for found in (autocast, whole):
        assert torch.equal(found.n_tokens, exact.n_tokens)
        likeness = torch.cosine_similarity(found.tokens.float(), exact.tokens, dim=-1)
        assert all(row[:n].min() > 0.98 for row, n in zip(likeness, exact.n_tokens, strict=True))


# How many tokens are read


def n_tokens(logits: list[list[float]], *lengths: int, **options) -> list[int]:
    connector = build("query", **options)
    connector.end_head = Fixed(*logits)
    return connector(features(*lengths)).n_tokens.tolist()


def test_decoding_stops_at_the_end_of_the_last_clip() -> None:
    connector = build("autoregressive")
    computed = []

    class Ends(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            computed.append(hidden.shape[1])
            past = len(computed) - 1 >= torch.tensor([[3.0, 5.0]]).T
            return torch.where(past, 1.0, -1.0)[..., None].expand(-1, hidden.shape[1], 1)

    connector.end_head = Ends()
    audio = connector(features(200, 150))
    assert computed == [1] * 6
    assert audio.tokens.shape == (2, 5, D_LLM)


def test_the_first_slot_past_the_end_ends_the_clip() -> None:
    logits = [-1.0, -1.0, 0.0, 2.0, -1.0] + [1.0] * 15
    assert n_tokens([logits], 200) == [3]


def test_there_is_at_least_one_token() -> None:
    assert n_tokens([[5.0] * 20], 200) == [1]
    assert n_tokens([[5.0] * 20], 1) == [1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"slots_per_second": 6.0}, [20, 8, 5, 2]),
        ({"slots_per_second": 2.0}, [10, 4, 3, 2]),
        ({"slots_per_second": 6.0, "n_queries": 6}, [6, 6, 5, 2]),
    ],
)
def test_without_an_end_duration_limits_the_tokens(options: dict, expected: list[int]) -> None:
    never = [[-1.0] * 20] * 4
    assert n_tokens(never, 200, 50, 25, 1, **options) == expected


def test_in_training_the_transcript_gives_the_length() -> None:
    audio = build("query")(features(200, 10), transcripts_of(3, 11))
    assert audio.n_tokens.tolist() == [3, 11]
    assert audio.tokens.shape == (2, 12, D_LLM)  # one slot more than tokens, to learn the end by
    assert audio.end_logits is not None
    assert audio.end_logits.shape == (2, 12)
    anchored = build("anchored")(features(200, 10), transcripts_of(3, 11))
    assert anchored.n_tokens.tolist() == [3, 11]
    assert anchored.tokens.shape == (2, 11, D_LLM)


@pytest.mark.parametrize("form", FORMS[:3])
def test_a_transcript_longer_than_the_queries_fills_them(form: str) -> None:
    audio = build(form)(features(200, 10), transcripts_of(3, 500))
    assert audio.n_tokens.tolist() == [3, 20]
    assert audio.tokens.shape == (2, 20, D_LLM)


@pytest.mark.parametrize(
    "transcripts", [None, transcripts_of(3, 500)], ids=["unknown length", "known length"]
)
def test_form_diva_always_reads_all_slots(transcripts: Transcripts | None) -> None:
    audio = build("diva")(features(200, 1), transcripts)
    assert audio.n_tokens.tolist() == [20, 20]
    assert audio.tokens.shape == (2, 20, D_LLM)
    assert audio.end_logits is None


def test_stacked_frames_cover_the_sound() -> None:
    connector = build("stack", n_stacked=8)
    audio = connector(features(33, 32, 1, n_padding=9), transcripts_of(1, 2, 3))
    assert audio.n_tokens.tolist() == [5, 4, 1]
    assert audio.end_logits is None
    assert isinstance(connector, FrameStackingConnector)


def test_stacking_is_an_mlp_of_neighbors() -> None:
    connector, batch = build("stack", n_stacked=4), features(8)
    first, second = batch.states[0, :4].flatten(), batch.states[0, 4:].flatten()
    torch.testing.assert_close(connector(batch).tokens, connector.mlp(torch.stack([first, second]))[None])


# Queries anchored in time


def build_detecting(*logits: list[float]) -> Any:
    """An anchored connector whose detector has fixed logits."""
    connector = build("anchored", slots_per_second=6.0)
    connector.token_detector.is_spoken = Fixed(*logits)
    return connector


def test_there_is_a_token_for_each_stretch_between_pauses() -> None:
    logits = [5.0, 5.0, -5.0, 5.0, -5.0, -5.0, 5.0, 5.0, 5.0, -5.0]
    audio = build_detecting(logits * 10)(features(100))
    assert audio.n_tokens.tolist() == [14]  # as many as its duration allows
    assert build_detecting(logits + [-5.0] * 40)(features(50)).n_tokens.tolist() == [3]


def test_a_faint_token_counts_over_all_its_positions() -> None:
    """No single position is likelier than not to speak it, but all of them together are."""
    assert build_detecting([5.0, -5.0, -0.4, -0.4, -0.4, -5.0])(features(6)).n_tokens.tolist() == [2]


def test_without_a_detection_there_is_one_token() -> None:
    connector, batch = build_detecting([-9.0, -4.0, -9.0]), features(3)
    assert connector(batch).n_tokens.tolist() == [1]
    anchors = connector.token_detector(batch.states, batch.mask, None, torch.tensor([2]))
    torch.testing.assert_close(anchors.weights, torch.tensor([[[0.0, 1.0, 0.0]]]), atol=0.02, rtol=0)


def test_detections_outside_the_clip_are_ignored() -> None:
    logits = [5.0, -5.0, 5.0, -5.0, 5.0]
    assert build_detecting(logits + [-5.0] * 45, logits * 10)(features(50, 3)).n_tokens.tolist() == [3, 2]


def test_no_more_slots_are_decoded_than_the_longest_clip_has_tokens() -> None:
    logits = [5.0, -5.0, 5.0, -5.0, 5.0]
    assert build_detecting(logits + [-5.0] * 45, logits * 10)(features(50, 3)).tokens.shape == (2, 3, D_LLM)


def test_a_likelier_position_has_more_weight() -> None:
    connector, batch = build_detecting([-5.0, 0.0, 4.0, -5.0]), features(4)
    (shares,) = connector.token_detector(batch.states, batch.mask, None, torch.tensor([1])).weights[0]
    assert shares[2] > 0.6 > shares[1] > 0.2 > shares[0]
    assert shares.sum() == pytest.approx(1)


def test_in_training_tokens_are_aligned_with_the_transcript() -> None:
    """Known tokens are found in order, their weights sum to one, and the likelihood trains the detector."""
    connector, batch = build("anchored"), features(60, 25)
    transcripts = transcripts_of(4, 7)
    anchors = connector.token_detector(
        batch.states, batch.mask, batch.attention_mask, torch.tensor([20, 20]), transcripts
    )
    for row, n in enumerate((4, 7)):
        torch.testing.assert_close(anchors.weights[row, :n].sum(1), torch.ones(n))
        assert not anchors.weights[row, n:].any()
        centres = anchors.weights[row, :n] @ torch.arange(60.0)
        assert (centres.diff() > 0).all()
    assert not anchors.weights[1, :, 25:].any()
    audio = connector(batch, transcripts)
    torch.testing.assert_close(audio.log_likelihood, anchors.log_likelihood)
    audio.log_likelihood.sum().backward()
    assert connector.token_detector.is_spoken.weight.grad.any()
    assert connector.token_detector.convolution.weight.grad.any()


def test_a_detector_learns_where_words_are() -> None:
    """From transcripts alone: each of three words is a direction of the features, for a few positions."""
    torch.manual_seed(0)
    connector = TokenDetector(pretrained().config, D_LLM)
    candidates, sounds = torch.randn(3, D_LLM), 4 * torch.randn(3, D_ENCODER)
    optimizer = torch.optim.Adam(connector.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Transcripts]:
        wanted = torch.randint(3, (16, 4), generator=generator)
        states = torch.randn(16, 40, D_ENCODER, generator=generator)
        for token in range(4):
            first = 9 * token + int(torch.randint(5, (), generator=generator))
            states[:, first : first + 4] += sounds[wanted[:, token]][:, None]
        return states, Transcripts(torch.full((16,), 4), wanted, candidates)

    mask, most = torch.ones(16, 40, dtype=torch.bool), torch.full((16,), 20)
    for _ in range(120):
        states, transcripts = batch()
        anchors = connector(states, mask, None, most, transcripts)
        assert anchors.log_likelihood is not None
        loss = -anchors.log_likelihood.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states, transcripts = batch()
    anchors = connector(states, mask, None, most)
    assert (anchors.n_tokens == 4).float().mean() > 0.9


def test_more_tokens_than_positions_are_divided_evenly() -> None:
    connector = build("anchored")
    audio = connector(features(3, 2), transcripts_of(12, 1))
    audio.tokens.square().sum().backward()
    assert audio.tokens.isfinite().all()
    assert audio.log_likelihood[0] == 0
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in connector.parameters())
