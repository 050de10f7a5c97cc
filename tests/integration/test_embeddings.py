"""Embeddings through the whole path, with the gateway in the front door and alone."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc.aio as triton
from openai.types import CreateEmbeddingResponse
from tritonclient.utils import InferenceServerException

from gateway_http.config import GatewayConfig
from gateway_http.kserve_backend import KServeBackend
from runtime.grpc_client import RpcChannel
from tests.integration.gateway_client import openai_for, serving
from tests.integration.openai_validation import valid
from tests.integration.stack import running_stack
from tests.integration.test_gateway_stack import Setup
from wire.pool import rpc_types
from wire.pooling import EMBED
from worker.sim_engine import SimConfig

SIM = SimConfig(task=EMBED, dimensions=8, context_length=64, block_size=16)
TEXTS = ["Hello there", "Goodbye then", "Hello there"]


@pytest.fixture(params=["in the front door", "alone"])
async def setup(request: Any, model_folder: Path) -> AsyncIterator[Setup]:
    async with running_stack(model_folder, sim=SIM) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        alone = request.param == "alone"
        backend = KServeBackend(channel) if alone else stack.door.backend
        config = GatewayConfig(max_embedding_inputs=16)
        async with serving(backend, config) as http, openai_for(http) as client:
            yield Setup(http, client, stack)
        await channel.close()


async def test_each_input_has_a_vector_in_its_place(setup: Setup) -> None:
    answer = await setup.client.embeddings.create(model="sim", input=TEXTS)
    vectors = [it.embedding for it in answer.data]
    assert [it.index for it in answer.data] == [0, 1, 2]
    assert vectors[0] == vectors[2] != vectors[1]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert len(vectors[0]) == 8
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3


async def test_numbers_base64_and_token_ids_say_the_same(setup: Setup) -> None:
    async def embed(given: Any, form: str) -> Any:
        body = {"model": "sim", "input": given, "encoding_format": form}
        answer = (await setup.http.post("/v1/embeddings", json=body)).json()
        if form == "float":
            valid(CreateEmbeddingResponse, answer)
        return answer["data"][0]["embedding"]

    numbers = await embed(TEXTS[0], "float")
    raw = base64.b64decode(await embed(TEXTS[0], "base64"))
    assert np.frombuffer(raw, "<f4") == pytest.approx(numbers)
    found = await setup.http.post("/tokenize", json={"model": "sim", "prompt": TEXTS[0]})
    ids = found.json()["tokens"]
    assert await embed(ids, "float") == await embed([ids], "float") == numbers


async def test_dimensions_are_passed_on(setup: Setup) -> None:
    answer = await setup.client.embeddings.create(model="sim", input="x", dimensions=3)
    assert len(answer.data[0].embedding) == 3


async def test_an_input_may_fill_the_context_and_is_cut_on_request(setup: Setup) -> None:
    create = setup.client.embeddings.create
    full = list(range(100, 164))
    assert (await create(model="sim", input=full)).usage.prompt_tokens == 64
    with pytest.raises(openai.BadRequestError) as caught:
        await create(model="sim", input=[*full, 500])
    assert caught.value.code == "context_length_exceeded"
    for limit in (-1, 64):
        cut = await create(
            model="sim", input=[*full, 500], extra_body={"truncate_prompt_tokens": limit}
        )
        assert cut.data[0].embedding == (await create(model="sim", input=full)).data[0].embedding


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": [[]]}, "input"),
        ("embeddings", {"input": [""]}, "prompt"),
        ("embeddings", {"input": ["x"] * 17}, "input"),
        ("embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ("embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0].text"),
    ],
)
async def test_what_is_wrong_is_named(
    setup: Setup, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await setup.http.post(f"/v1/{path}", json={"model": "sim", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_scores_are_the_cosines_of_pairs(setup: Setup) -> None:
    answer = await setup.client.embeddings.create(model="sim", input=TEXTS)
    first, second, _ = (np.array(it.embedding) for it in answer.data)
    body = {"model": "sim", "text_1": TEXTS[0], "text_2": TEXTS[1:]}
    found = (await setup.http.post("/v1/score", json=body)).json()
    assert [it["score"] for it in found["data"]] == pytest.approx([first @ second, 1], abs=1e-5)
    pairs = {"model": "sim", "text_1": TEXTS[:2], "text_2": TEXTS[:2]}
    found = (await setup.http.post("/score", json=pairs)).json()
    assert [it["score"] for it in found["data"]] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_are_ranked_by_their_likeness(setup: Setup, path: str) -> None:
    documents = ["Goodbye then", {"text": "Hello there"}, "Something else"]
    body = {"model": "sim", "query": "Hello there", "documents": documents, "top_n": 2}
    found = (await setup.http.post(path, json=body)).json()["results"]
    assert len(found) == 2
    assert found[0]["index"] == 1
    assert found[0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert found[0]["document"] == {"text": "Hello there"}
    assert found[1]["relevance_score"] <= found[0]["relevance_score"]


async def test_a_model_for_embeddings_makes_no_text(setup: Setup) -> None:
    with pytest.raises(openai.BadRequestError, match="makes embeddings, not text") as caught:
        await setup.client.completions.create(model="sim", prompt="x")
    assert caught.value.param == "model"


async def test_a_model_for_text_makes_no_embeddings(model_folder: Path) -> None:
    async with (
        running_stack(model_folder) as stack,
        serving(stack.door.backend) as http,
        openai_for(http) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="makes text, not embeddings"):
            await client.embeddings.create(model="sim", input="x")


def text_input(text: str = TEXTS[0]) -> Any:
    made = triton.InferInput("text_input", [1], "BYTES")
    made.set_data_from_numpy(np.array([text.encode()], dtype=object))
    return made


async def test_kserves_clients_ask_by_the_output_or_by_the_flag(model_folder: Path) -> None:
    async with (
        running_stack(model_folder, sim=SIM) as stack,
        triton.InferenceServerClient(stack.grpc) as client,
        serving(stack.door.backend) as http,
        openai_for(http) as openai_client,
    ):
        expected = await openai_client.embeddings.create(model="sim", input=TEXTS[0])
        flag = triton.InferInput("embedding_request", [1], "BOOL")
        flag.set_data_from_numpy(np.array([True]))
        named = [triton.InferRequestedOutput("embedding")]
        for inputs, outputs in (([text_input(), flag], None), ([text_input()], named)):
            result = await client.infer("sim", inputs, outputs=outputs)
            found = result.as_numpy("embedding")
            assert found.shape == (8,)
            assert found == pytest.approx(expected.data[0].embedding)
            assert result.as_numpy("text_output") is None
        with pytest.raises(InferenceServerException, match="makes embeddings, not text"):
            await client.infer("sim", [text_input()])
        metadata = await client.get_model_metadata("sim")
        assert "embedding" in {it.name for it in metadata.outputs}
