"""LoRA adapters with the real engine: asked for by name, alone and beside each other."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton

from tests.e2e.conftest import MODEL, Served, serving
from tests.lora_folder import write_adapter
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

ADAPTERS = ("north", "south")
PROMPT = "The three largest cities of the country are, in the order of their population, "


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Served]:
    """A worker with two adapters; single precision, so that a batch changes no result."""
    folder = tmp_path_factory.mktemp("adapters")
    flags = [
        f"--lora-module={name}={write_adapter(folder / name, model_folder, seed=seed)}"
        for seed, name in enumerate(ADAPTERS)
    ]
    engine = ("--max-model-len", "1024", "--dtype", "float32")
    with serving(folder, *flags, engine=engine) as served:
        yield served


def ask(fleet: Served, model: str, **fields: object) -> str:
    client = openai.OpenAI(base_url=f"{fleet.http}/v1", api_key="none", timeout=120)
    answer = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=12, temperature=0, extra_body=fields
    )
    return answer.choices[0].text


def test_each_adapter_answers_the_same_alone_and_in_a_batch_with_others(fleet: Served) -> None:
    models = (MODEL, *ADAPTERS)
    alone = {model: ask(fleet, model, cache_salt="alone") for model in models}
    assert len(set(alone.values())) == len(models)
    asked = [*models * 3, MODEL]
    with ThreadPoolExecutor(len(asked)) as threads:
        salts = [f"batch-{number}" for number in range(len(asked))]
        together = list(threads.map(lambda *it: ask(fleet, it[0], cache_salt=it[1]), asked, salts))
    assert together == [alone[model] for model in asked]


def test_a_client_of_triton_names_an_adapter_by_parameter(fleet: Served) -> None:
    client = triton.InferenceServerClient(fleet.grpc)
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([PROMPT.encode()], dtype=object))
    exclude = triton.InferInput("exclude_input_in_output", [1], "BOOL")
    exclude.set_data_from_numpy(np.array([True]))
    values = {"max_tokens": 12, "temperature": 0}

    def answer(model: str, **more: str) -> bytes:
        result = client.infer(model, [text, exclude], parameters={**values, **more})
        found: bytes = result.as_numpy("text_output")[0]
        return found

    assert answer(MODEL, lora_name="north").decode() == ask(fleet, "north")
    assert answer("south").decode() == ask(fleet, "south")
    with pytest.raises(triton.InferenceServerException) as caught:
        answer(MODEL, lora_name="west")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message() == (
        "LoRA west is not supported, we currently support ['north', 'south']"
    )


def test_an_adapter_is_listed_as_a_model_whose_parent_is_the_base_model(fleet: Served) -> None:
    listed = httpx2.get(f"{fleet.http}/v1/models", timeout=30).json()["data"]
    assert {it["id"]: it["parent"] for it in listed} == {
        MODEL: None, "north": MODEL, "south": MODEL,
    }  # fmt: skip


def test_the_cache_is_shared_by_requests_of_one_adapter_only(fleet: Served) -> None:
    prompt = "cache " * 80

    def cached(model: str) -> tuple[int, int]:
        """Tokens that the engine found, and blocks that the router had expected there."""
        answer = httpx2.post(
            f"{fleet.http}/v1/completions",
            json={"model": model, "prompt": prompt, "max_tokens": 1},
            headers={"x-penstock-explain-route": "true"},
            timeout=120,
        )
        usage = answer.json()["usage"]
        blocks = int(answer.headers["x-penstock-overlap-blocks"])
        return usage["prompt_tokens_details"]["cached_tokens"], blocks

    assert cached(MODEL) == (0, 0)
    # Events of what was stored take a moment.
    wait_until(lambda: cached(MODEL) == (64, 2), limit_s=20)
    assert cached("north") == (0, 0)
    wait_until(lambda: cached("north") == (64, 2), limit_s=20)
