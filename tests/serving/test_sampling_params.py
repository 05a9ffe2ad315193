"""Sampling parameters beyond temperature and top_p: what requests may send, and that batches do not mix them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from support.serve_app import serve_app

import ossicle
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.errors import ApiError
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.sampling_params import read_sampling_params

MODEL = "pocket/ear"
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "what is the capital of japan"}],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -2), ("top_k", 1.5), ("min_p", 1.1), ("repetition_penalty", 0), ("presence_penalty", 2.1),
        ("frequency_penalty", "1"), ("logit_bias", []), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": True}), ("logit_bias", {str(i): 0 for i in range(2_000)}), ("logit_bias", {"²": 1}),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ApiError) as refused:
        read_sampling_params({**BODY, name: value})
    assert refused.value.param == name


def test_a_limit_on_tokens_asks_for_sampling_and_a_penalty_does_not() -> None:
    temperatures = [
        read_sampling_params({**BODY, **fields}).sampling.temperature
        for fields in ({"top_k": 5}, {"min_p": 0.1}, {"top_k": -1}, {"presence_penalty": 1.0})
    ]
    assert temperatures == [1.0, 1.0, 0.0, 0.0]


def test_requests_of_one_batch_keep_their_own_parameters() -> None:
    metrics = Metrics()
    ear = ossicle.load(MODEL, device="cpu")
    settings: list[dict[str, Any]] = [
        {},
        {
            "logit_bias": {str(ear.tokenizer("london", add_special_tokens=False)["input_ids"][0]): 100},
            "max_tokens": 3,
        },
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "max_tokens": 20},
        {"extra_body": {"repetition_penalty": 5.0}, "max_tokens": 20},
        {"extra_body": {"top_k": 3}, "seed": 1, "temperature": 2.0, "max_tokens": 20},
    ]
    app = create_app(LocalEngine(ear, metrics), ServerSettings(model=MODEL), metrics)
    with serve_app(app) as url, openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:

        def ask(options: dict[str, Any]) -> str:
            completion = client.chat.completions.create(**BODY, **options)
            return str(completion.choices[0].message.content)

        alone = list(map(ask, settings))
        with ThreadPoolExecutor(len(settings)) as pool:
            assert list(pool.map(ask, settings)) == alone
        assert len(set(alone)) > 2
        with pytest.raises(openai.BadRequestError, match="names the token 99999"):
            ask({"logit_bias": {"99999": 1}})
