import pytest
from support.tiny_models import tiny_llama
from support.tiny_tokenizers import tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer("llama")


@pytest.fixture
def llm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new one for each test, which may change its generation config."""
    return tiny_llama(tokenizer, seed=8)
