"""Scores of a prompt, as evaluation harnesses ask for them, from the real engine."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton

from tests.e2e.conftest import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

PROMPT = "The capital of France is Paris. The capital of Italy is"
BETWEEN_PREFILL_AND_DECODE = 0.3
"""How far bfloat16 brings apart what is computed in one step and token by token."""


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{served.http}/v1", api_key="none", timeout=120, max_retries=0
    ) as client:
        yield client


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    given = {"model": MODEL, "prompt": prompt, "temperature": 0, "logprobs": 1, **fields}
    return client.completions.create(**given).choices[0]


def test_a_text_scores_as_it_did_when_the_model_wrote_it(
    client: openai.OpenAI, served: Served
) -> None:
    written = complete(client, PROMPT, max_tokens=12, extra_body={"return_token_ids": True})
    asked = {"model": MODEL, "prompt": PROMPT}
    prompt_ids = httpx2.post(f"{served.http}/tokenize", json=asked).json()["tokens"]
    scored = complete(client, [*prompt_ids, *written.token_ids], echo=True, max_tokens=0)
    behind = scored.logprobs.token_logprobs[len(prompt_ids) :]
    assert len(behind) == 12
    assert behind == pytest.approx(written.logprobs.token_logprobs, abs=BETWEEN_PREFILL_AND_DECODE)
    # Greedy: what was written is the likeliest at each place, which harnesses call is_greedy.
    for token, top in zip(
        scored.logprobs.tokens[len(prompt_ids) :],
        scored.logprobs.top_logprobs[len(prompt_ids) :],
        strict=True,
    ):
        assert max(top.values()) - top[token] < BETWEEN_PREFILL_AND_DECODE


def test_the_likelier_of_two_endings_scores_higher(client: openai.OpenAI) -> None:
    def score(ending: str) -> float:
        found = complete(client, PROMPT + ending, echo=True, max_tokens=0).logprobs
        start = sum(offset < len(PROMPT) for offset in found.text_offset)
        return float(sum(found.token_logprobs[start:]))

    assert score(" Rome.") > score(" Berlin.")


def test_kserves_clients_get_the_same_scores(client: openai.OpenAI, served: Served) -> None:
    echoed = complete(client, PROMPT, echo=True, max_tokens=1)
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([PROMPT.encode()], dtype=object))
    flag = triton.InferInput("return_prompt_logprobs", [1], "BOOL")
    flag.set_data_from_numpy(np.array([True]))
    with triton.InferenceServerClient(served.grpc) as kserve:
        result = kserve.infer(MODEL, [text, flag], parameters={"max_tokens": 1, "temperature": 0})
    positions = json.loads(result.as_numpy("prompt_logprobs")[0])
    scores = [next(iter(it.values()))["logprob"] for it in positions]
    assert scores[0] is None
    assert scores[1:] == pytest.approx(
        echoed.logprobs.token_logprobs[1 : len(scores)], abs=BETWEEN_PREFILL_AND_DECODE
    )
    assert len(scores) == len(echoed.logprobs.tokens) - 1
