"""A connector fitted to another LLM: what it has learned stays, what touches the LLM is refitted."""

import torch
from support.tiny_models import tiny_ear, tiny_llama, tiny_whisper
from support.tiny_tokenizers import tiny_tokenizer
from torch import Tensor

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.connectors.autoregressive import AutoregressiveConnector
from ossicle.connectors.transfer import SharedRows, fit_ridge, transfer_connector
from ossicle.ear import Ear

SOUND = torch.sin(torch.arange(16_000) / 9)
D_LLM = 48
PERMUTED = torch.randperm(D_LLM, generator=torch.Generator().manual_seed(5))


def trained_ear() -> Ear:
    """An ear whose residual and feedback are not zero, as training leaves them."""
    ear = tiny_ear("autoregressive")
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in ear.connector.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return ear


def untrained_ear(embeddings: Tensor) -> Ear:
    """An ear for an LLM with these embeddings."""
    llm = tiny_llama(d_model=embeddings.shape[1], seed=3)
    get_input_embeddings(llm).weight.copy_(embeddings)
    return tiny_ear("autoregressive", llm=llm, seed=8)


def connector_of(ear: Ear) -> AutoregressiveConnector:
    assert isinstance(ear.connector, AutoregressiveConnector)
    return ear.connector


def transfer(source: Ear, target: Ear) -> tuple[float, float]:
    before, after = connector_of(source), connector_of(target)
    assert before.vocabulary_head is not None
    rows = torch.arange(len(before.vocabulary_head.llm_embeddings))
    fit = transfer_connector(before, after, SharedRows(rows, rows))
    return fit.residual_r2, fit.feedback_r2


def embeddings_of(ear: Ear) -> Tensor:
    return get_input_embeddings(ear.llm).weight.detach().clone()


def test_an_llm_with_its_dimensions_in_another_order_hears_the_same() -> None:
    source = trained_ear()
    target = untrained_ear(embeddings_of(source)[:, PERMUTED])
    fit = transfer(source, target)
    torch.testing.assert_close(target.hear(SOUND), source.hear(SOUND)[:, PERMUTED], rtol=1e-3, atol=1e-3)
    assert target.transcribe_audio_tokens([SOUND]) == source.transcribe_audio_tokens([SOUND])
    assert min(fit) > 0.999


def test_a_wider_llm_gets_the_residual_along_its_own_embeddings() -> None:
    source = trained_ear()
    table = embeddings_of(source)
    rotation, _ = torch.linalg.qr(torch.randn(64, D_LLM, generator=torch.Generator().manual_seed(1)))
    target = untrained_ear(3.0 * table @ rotation.T + 1.0)
    fit = transfer(source, target)
    hidden = torch.randn(5, tiny_whisper().config.d_model, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        connector_of(target).projection(hidden),
        3.0 * connector_of(source).projection(hidden) @ rotation.T,
        rtol=1e-3,
        atol=1e-3,
    )
    assert fit[0] > 0.999


def test_what_is_in_whispers_space_is_copied() -> None:
    source = trained_ear()
    target = untrained_ear(torch.randn(len(tiny_tokenizer("llama")), 64))
    transfer(source, target)
    refitted = ("projection.2.", "feedback.norm.", "feedback.token.0.")
    after = target.connector.state_dict()
    for name, weight in source.connector.state_dict().items():
        if not name.startswith(refitted):
            assert torch.equal(after[name], weight), name


def test_unrelated_embeddings_leave_almost_no_residual() -> None:
    """The penalty is chosen on held-out words: with nothing to explain, the map is close to zero."""
    source = trained_ear()
    target = untrained_ear(torch.randn(len(tiny_tokenizer("llama")), 64))
    residual_r2, _ = transfer(source, target)
    assert abs(residual_r2) < 0.1
    hidden = torch.randn(5, tiny_whisper().config.d_model)
    ratio = connector_of(target).projection(hidden).norm() / connector_of(source).projection(hidden).norm()
    assert ratio < 0.5


def test_ridge_finds_an_affine_map() -> None:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 6, generator=rng, dtype=torch.float64)
    weight, bias = (
        torch.randn(3, 6, generator=rng, dtype=torch.float64),
        torch.arange(3.0, dtype=torch.float64),
    )
    fitted = fit_ridge(inputs, inputs @ weight.T + bias)
    torch.testing.assert_close(fitted.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fitted.bias, bias, rtol=1e-4, atol=1e-4)
    assert fitted.r2 > 0.9999


def test_ridge_ignores_inputs_and_outputs_that_never_change() -> None:
    fitted = fit_ridge(torch.ones(30, 4).double(), torch.full((30, 2), 3.0).double())
    torch.testing.assert_close(fitted.weight, torch.zeros(2, 4).double())
    torch.testing.assert_close(fitted.bias, torch.full((2,), 3.0).double())
