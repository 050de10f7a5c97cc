"""Embeddings of a real model by the real engine, against the model computed directly."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import tritonclient.grpc as triton

from tests.e2e.conftest import Served, serving
from worker.models import EMBEDDER_ALIAS, resolve_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

LENGTH = 256
TEXTS = ["The capital of France is Paris.", "Grüße, 世界! 🌧", "x", "word " * 400]
REFERENCE = Path(__file__).with_name("embedding_reference.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_embeddings.py"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("embeddings")
    with serving(folder, engine=(), model=EMBEDDER_ALIAS) as served:
        yield served


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    model = resolve_model(EMBEDDER_ALIAS, progress=print).path
    asked = {"model": str(model), "texts": TEXTS, "length": LENGTH}
    done = subprocess.run(
        [sys.executable, str(REFERENCE)],
        input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads(done.stdout), dtype=np.float32)


@pytest.fixture
def client(fleet: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{fleet.http}/v1", api_key="none", timeout=60, max_retries=0)


def test_vectors_are_those_of_the_model_within_a_hundred_thousandth(
    client: openai.OpenAI, reference: np.ndarray
) -> None:
    answer = client.embeddings.create(
        model=EMBEDDER_ALIAS, input=TEXTS, extra_body={"truncate_prompt_tokens": -1}
    )
    found = np.array([it.embedding for it in answer.data], dtype=np.float32)
    assert found.shape == (len(TEXTS), 384)
    assert np.abs(found - reference).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


def test_what_is_too_long_is_refused_unless_it_may_be_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=EMBEDDER_ALIAS, input=TEXTS[-1])
    assert caught.value.code == "context_length_exceeded"


def test_fewer_dimensions_need_a_model_trained_for_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(?i)matryoshka|dimension"):
        client.embeddings.create(model=EMBEDDER_ALIAS, input="x", dimensions=7)
    assert client.embeddings.create(model=EMBEDDER_ALIAS, input="x").data


def test_a_client_of_triton_gets_the_same_vector(fleet: Served, reference: np.ndarray) -> None:
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([TEXTS[0].encode()], dtype=object))
    with triton.InferenceServerClient(fleet.grpc) as kserve:
        outputs = [triton.InferRequestedOutput("embedding")]
        found = kserve.infer(EMBEDDER_ALIAS, [text], outputs=outputs).as_numpy("embedding")
    assert np.abs(found - reference[0]).max() < 1e-5


def test_the_example_ranks_paris_first(fleet: Served) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), fleet.http],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout.splitlines()[0]
