"""Unmodified tritonclient and openai clients get real text from the real engine, and agree."""

import json
import queue
import urllib.request
from typing import Any

import numpy as np
import openai
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.e2e.conftest import MODEL, Served
from tests.waiting import wait_until

pytestmark = pytest.mark.vllm

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
SAMPLING = {"temperature": 0, "max_tokens": 24}
WAIT_S = 60.0


def tensor(name: str, values: list[Any], dtype: type = np.object_) -> triton.InferInput:
    """An input tensor of shape [len(values)]."""
    array = np.array(values, dtype=dtype)
    made = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def question(*, stream: bool | None = None, **sampling: Any) -> list[triton.InferInput]:
    """The inputs of the question, greedy."""
    inputs = [
        tensor("messages", [json.dumps(QUESTION).encode()]),
        tensor("sampling_parameters", [json.dumps(SAMPLING | sampling).encode()]),
        tensor("return_output_ids", [True], np.bool_),
    ]
    return inputs if stream is None else [*inputs, tensor("stream", [stream], np.bool_)]


class Stream:
    """A tritonclient stream whose results wait in a queue."""

    def __init__(self, served: Served) -> None:
        self._answers: queue.Queue[Any] = queue.Queue()
        self.client = triton.InferenceServerClient(served.grpc)
        self.client.start_stream(lambda result, error: self._answers.put(error or result))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream()
        self.client.close()

    def ask(self, request_id: str, inputs: list[triton.InferInput], model: str = MODEL) -> None:
        self.client.async_stream_infer(model, inputs, request_id=request_id)

    def next(self) -> Any:
        """The next response; raises the error if it is one."""
        answer = self._answers.get(timeout=WAIT_S)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def until_final(self) -> list[Any]:
        """All responses up to the final one."""
        answers = [self.next()]
        while not is_final(answers[-1]):
            answers.append(self.next())
        return answers


def is_final(result: triton.InferResult) -> bool:
    final: bool = result.get_response().parameters["triton_final_response"].bool_param
    return final


def text_of(results: list[triton.InferResult]) -> str:
    return "".join(result.as_numpy("text_output")[0].decode() for result in results)


def ids_of(results: list[triton.InferResult]) -> list[int]:
    ids = [result.as_numpy("output_ids") for result in results]
    return [int(i) for part in ids if part is not None for i in part.ravel()]


def running_requests(served: Served) -> float:
    """The engine's running and waiting requests, from the worker's metrics."""
    url = served.worker_status_url() + "/metrics"
    with urllib.request.urlopen(url, timeout=WAIT_S) as response:
        lines = response.read().decode().splitlines()
    names = ("penstock_worker_requests_running{", "penstock_worker_requests_waiting{")
    found = [float(line.split()[-1]) for line in lines if line.startswith(names)]
    assert len(found) == 2
    return sum(found)


@pytest.fixture(scope="module")
def reference(served: Served) -> tuple[str, list[int]]:
    """Text and token ids of the greedy answer by unary ModelInfer."""
    client = triton.InferenceServerClient(served.grpc)
    result = client.infer(MODEL, question(), client_timeout=WAIT_S)
    client.close()
    assert result.get_response().parameters["completion_tokens"].int64_param > 0
    return text_of([result]), ids_of([result])


def test_the_unary_triton_answer_names_paris(reference: tuple[str, list[int]]) -> None:
    assert "Paris" in reference[0]


def test_the_triton_stream_joins_to_the_unary_answer(
    served: Served, reference: tuple[str, list[int]]
) -> None:
    with Stream(served) as stream:
        stream.ask("one", question(stream=True))
        answers = stream.until_final()
    assert len(answers) > 1
    assert (text_of(answers), ids_of(answers)) == reference
    assert {answer.get_response().id for answer in answers} == {"one"}


async def test_the_asyncio_triton_client_gets_the_same_answers(
    served: Served, reference: tuple[str, list[int]]
) -> None:
    async with triton_aio.InferenceServerClient(served.grpc) as client:
        unary = await client.infer(MODEL, question(), client_timeout=WAIT_S)

        async def one() -> Any:
            yield {"model_name": MODEL, "inputs": question(stream=True), "request_id": "a"}

        streamed = []
        async for result, error in client.stream_infer(one()):
            assert error is None
            streamed.append(result)
    assert (text_of([unary]), ids_of([unary])) == reference
    assert (text_of(streamed), ids_of(streamed)) == reference


def test_openai_answers_agree_with_triton(served: Served, reference: tuple[str, list[int]]) -> None:
    client = openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", timeout=WAIT_S)
    ask: Any = {"model": MODEL, "messages": QUESTION, **SAMPLING}
    whole = client.chat.completions.create(**ask)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options=options))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content == streamed == reference[0]
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(reference[1])


async def test_the_asyncio_openai_client_gets_the_same_answers(
    served: Served, reference: tuple[str, list[int]]
) -> None:
    ask: Any = {"model": MODEL, "messages": QUESTION, **SAMPLING}
    async with openai.AsyncOpenAI(base_url=f"{served.http}/v1", api_key="none") as client:
        whole = await client.chat.completions.create(**ask, timeout=WAIT_S)
        parts = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(**ask, stream=True)
        ]
    assert whole.choices[0].message.content == "".join(parts) == reference[0]


def test_two_requests_of_one_stream_interleave(served: Served) -> None:
    with Stream(served) as stream:
        for name in ("a", "b"):
            stream.ask(name, question(stream=True, max_tokens=40, ignore_eos=True))
        order, finals = [], 0
        while finals < 2:
            answer = stream.next()
            order.append(answer.get_response().id)
            finals += is_final(answer)
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")
    assert order.index("a") < len(order) - 1 - order[::-1].index("b")


def test_cancelling_a_stream_frees_the_engine(served: Served) -> None:
    stream = Stream(served)
    stream.ask("long", question(stream=True, max_tokens=1500, ignore_eos=True))
    stream.next()
    assert running_requests(served) == 1
    stream.client.stop_stream(cancel_requests=True)
    wait_until(lambda: running_requests(served) == 0)
    stream.client.close()


def test_closing_an_openai_stream_frees_the_engine(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", timeout=WAIT_S)
    extra: Any = {"ignore_eos": True}
    chunks: Any = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1500, stream=True, extra_body=extra
    )
    next(iter(chunks))
    chunks.close()
    wait_until(lambda: running_requests(served) == 0)


@pytest.mark.parametrize(
    ("model", "inputs", "status", "names"),
    [
        ("nobody", question(), "NOT_FOUND", "nobody"),
        (MODEL, [tensor("text_input", [7], np.int32)], "INVALID_ARGUMENT", "text_input"),
        (MODEL, [tensor("wrong", [b"x"])], "INVALID_ARGUMENT", "wrong"),
        (
            MODEL,
            [tensor("text_input", [b"x"]), tensor("sampling_parameters", [b"{bad"])],
            "INVALID_ARGUMENT",
            "sampling_parameters",
        ),
        (MODEL, question(temperature=9), "INVALID_ARGUMENT", "temperature"),
        (MODEL, [tensor("input_ids", [2**30], np.int32)], "INVALID_ARGUMENT", "input_ids"),
    ],
)
def test_a_bad_request_gets_its_error_and_the_next_one_works(
    served: Served,
    reference: tuple[str, list[int]],
    model: str,
    inputs: list[triton.InferInput],
    status: str,
    names: str,
) -> None:
    client = triton.InferenceServerClient(served.grpc)
    with pytest.raises(InferenceServerException, match=names) as caught:
        client.infer(model, inputs, client_timeout=WAIT_S)
    assert caught.value.status() == f"StatusCode.{status}"
    client.close()
    with Stream(served) as stream:
        stream.ask("bad", inputs, model)
        with pytest.raises(InferenceServerException, match=names):
            stream.next()
        stream.ask("good", question(stream=True))
        assert text_of(stream.until_final()) == reference[0]


def test_openai_errors_have_their_status_and_shape(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0)
    ask: Any = {"messages": QUESTION, "timeout": WAIT_S}
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", **ask)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as invalid:
        client.chat.completions.create(model=MODEL, temperature=9, **ask)
    assert invalid.value.param == "temperature"


@pytest.mark.timeout(240)
def test_killing_the_worker_gives_one_error_and_serve_brings_it_back(
    served: Served, reference: tuple[str, list[int]]
) -> None:
    with Stream(served) as stream:
        for name in ("a", "b"):
            stream.ask(name, question(stream=True, max_tokens=1500, ignore_eos=True))
        stream.next()
        worker = served.worker()
        family = [worker, *worker.children(recursive=True)]
        worker.kill()
        errors = []
        while len(errors) < 2:
            try:
                stream.next()
            except InferenceServerException as error:
                errors.append(str(error))
        assert all("lost" in error for error in errors)
    psutil.wait_procs(family, timeout=WAIT_S)
    assert not any(member.is_running() for member in family), "the engine outlived its worker"
    client = triton.InferenceServerClient(served.grpc)
    wait_until(lambda: bool(client.is_model_ready(MODEL)), limit_s=180)
    result = client.infer(MODEL, question(), client_timeout=WAIT_S)
    client.close()
    assert (text_of([result]), ids_of([result])) == reference


def test_sigterm_lets_a_running_stream_finish(served: Served) -> None:
    stream = Stream(served)
    stream.ask("last", question(stream=True, max_tokens=60, ignore_eos=True))
    answers = [stream.next()]
    served.process.terminate()
    answers += stream.until_final()
    assert sum(len(ids_of([answer])) for answer in answers) == 60
    stream.client.stop_stream()
    stream.client.close()
    assert served.process.wait(WAIT_S) == 0
