"""Rules of KServe v2 and of Triton's vLLM contract, as tritonclient meets them at a front door."""

import asyncio
import json
import queue
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from runtime.errors import InvalidRequest, Unsupported
from runtime.grpc_client import RpcChannel
from tests.integration.kserve_client import ask, infer, is_final, open_stream, read
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

WAIT_S = 10.0
PROMPT = "Hello there"
GREEDY = {"max_tokens": 8, "temperature": 0}


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=SimConfig(timing=SimTiming())) as made:
        yield made


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(stack.grpc) as made:
        yield made


def tensor(name: str, value: Any, datatype: str = "BYTES", shape: tuple[int, ...] = (1,)) -> Any:
    kinds = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32}
    made = blocking.InferInput(name, list(shape), datatype)
    made.set_data_from_numpy(np.full(shape, value, dtype=kinds[datatype]))
    return made


def text(value: str = PROMPT) -> Any:
    return tensor("text_input", value.encode())


def status_of(error: InferenceServerException) -> str:
    return str(error.status()).removeprefix("StatusCode.")


async def test_the_server_is_live_ready_and_says_what_it_can(client: Any) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    metadata = await client.get_server_metadata()
    assert metadata.name == "penstock"
    assert metadata.version
    offered = {"model_configuration", "model_repository", "parameters", "schedule_policy"}
    assert offered <= set(metadata.extensions)


async def test_an_unknown_model_or_version_is_not_ready_and_no_error(client: Any) -> None:
    assert await client.is_model_ready("sim")
    assert await client.is_model_ready("sim", "1")
    for name, version in (("other", ""), ("sim", "2"), ("sim", "x")):
        assert not await client.is_model_ready(name, version)


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("sim", "2"), ("sim", "x")])
async def test_an_unknown_model_or_version_is_not_found_by_everything_else(
    client: Any, name: str, version: str
) -> None:
    for call in (
        lambda: client.get_model_metadata(name, version),
        lambda: client.get_model_config(name, version),
        lambda: client.infer(name, [text()], version),
    ):
        with pytest.raises(InferenceServerException) as refused:
            await call()
        assert status_of(refused.value) == "NOT_FOUND"


async def test_the_metadata_leaves_its_disputed_field_empty_and_has_one_version(
    client: Any,
) -> None:
    metadata = await client.get_model_metadata("sim")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("sim", ["1"], "vllm")
    assert not any(number.number == 6 for number, _ in metadata.ListFields())
    config = (await client.get_model_config("sim")).config
    assert (config.backend, config.max_batch_size) == ("vllm", 0)
    assert config.model_transaction_policy.decoupled


async def test_the_index_says_the_state_as_a_text(client: Any) -> None:
    (model,) = (await client.get_model_repository_index()).models
    assert (model.name, model.version, model.state) == ("sim", "1", "READY")


async def test_an_absent_id_stays_absent_and_a_given_one_comes_back(client: Any) -> None:
    unnamed = await client.infer("sim", [text()], parameters=GREEDY)
    named = await client.infer("sim", [text()], request_id="a b/ü", parameters=GREEDY)
    assert unnamed.get_response().id == ""
    assert named.get_response().id == "a b/ü"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_requests_are_read(client: Any, algorithm: str) -> None:
    plain = await client.infer("sim", [text()], parameters=GREEDY)
    packed = await client.infer("sim", [text()], parameters=GREEDY, compression_algorithm=algorithm)
    assert packed.as_numpy("text_output")[0] == plain.as_numpy("text_output")[0]


async def test_a_message_beyond_grpcs_usual_limit_is_read(client: Any) -> None:
    huge = text("x" * (5 << 20))
    with pytest.raises(InferenceServerException, match="text_input") as refused:
        await client.infer("sim", [huge], parameters=GREEDY)
    assert status_of(refused.value) == "INVALID_ARGUMENT"


async def test_custom_and_reserved_parameters_of_tritonclient_are_taken(client: Any) -> None:
    answer = await client.infer(
        "sim",
        [text()],
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=2,
        timeout=5_000_000,
        parameters=GREEDY | {"mine": "x", "yours": True, "theirs": 1.5},
    )
    assert answer.as_numpy("text_output")[0].decode().startswith(PROMPT)


async def test_without_max_tokens_an_answer_has_sixteen_and_ends_by_length(client: Any) -> None:
    flags = [
        tensor(name, True, "BOOL") for name in ("return_finish_reason", "return_num_output_tokens")
    ]
    answer = await client.infer("sim", [text(), *flags], parameters={"ignore_eos": True})
    assert answer.as_numpy("finish_reason")[0] == b"length"
    assert answer.as_numpy("num_output_tokens").tolist() == [16]


async def test_all_outputs_may_be_asked_for_and_those_that_are_off_are_left_out(
    client: Any,
) -> None:
    metadata = await client.get_model_metadata("sim")
    wanted = [blocking.InferRequestedOutput(it.name) for it in metadata.outputs]
    answer = await client.infer("sim", [text()], outputs=wanted, parameters=GREEDY)
    assert [it.name for it in answer.get_response().outputs] == ["text_output"]


async def test_counts_and_choices_have_one_dimension(client: Any) -> None:
    flags = [
        tensor(name, True, "BOOL")
        for name in ("return_num_input_tokens", "return_num_output_tokens", "return_logprobs")
    ]
    sampling = tensor("sampling_parameters", json.dumps({"n": 2, "max_tokens": 3}).encode())
    answer = await client.infer("sim", [text(), sampling, *flags])
    assert answer.as_numpy("text_output").shape == (2,)
    assert answer.as_numpy("num_input_tokens").shape == (1,)
    assert answer.as_numpy("num_output_tokens").shape == (2,)
    assert answer.as_numpy("logprobs").tolist() == [b"null", b"null"]


async def test_log_probabilities_are_json_by_token_id(client: Any) -> None:
    flags = [tensor("return_logprobs", True, "BOOL"), tensor("return_output_ids", True, "BOOL")]
    sampling = tensor("sampling_parameters", b'{"logprobs": 1, "max_tokens": 3}')
    answer = await client.infer("sim", [text(), sampling, *flags])
    positions = json.loads(answer.as_numpy("logprobs")[0])
    ids = answer.as_numpy("output_ids").tolist()
    assert len(positions) == len(ids)
    for position, token_id in zip(positions, ids, strict=True):
        assert position[str(token_id)].keys() == {"logprob", "rank", "decoded_token"}


async def test_genai_perfs_vllm_request_is_answered_as_a_stream(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        inputs = [
            text(),
            tensor("exclude_input_in_output", True, "BOOL"),
            tensor("stream", True, "BOOL"),
            tensor("sampling_parameters", b'{"max_tokens": "16", "min_tokens": "16"}'),
        ]
        yield {"model_name": "sim", "inputs": inputs, "request_id": "1"}

    responses = []
    async with asyncio.timeout(WAIT_S):
        async for result, error in client.stream_infer(requests()):
            assert error is None
            responses.append(result.get_response())
    assert [is_final(it) for it in responses] == [False] * (len(responses) - 1) + [True]
    assert responses[-1].parameters["completion_tokens"].int64_param == 16


async def test_genai_perfs_tensorrt_llm_request_is_answered(client: Any) -> None:
    inputs = [
        tensor("text_input", PROMPT.encode(), shape=(1, 1)),
        tensor("max_tokens", 4, "INT32", (1, 1)),
        tensor("min_length", 4, "INT32", (1, 1)),
        tensor("exclude_input_in_output", True, "BOOL", (1, 1)),
        tensor("stream", False, "BOOL", (1, 1)),
    ]
    answer = await client.infer("sim", inputs)
    assert answer.as_numpy("text_output").shape == (1, 1)
    assert answer.get_response().parameters["completion_tokens"].int64_param == 4


async def test_the_cpp_clients_key_in_a_unary_request_is_taken(channel: RpcChannel) -> None:
    request = ask(stream=False)
    request.parameters["triton_enable_empty_final_response"].bool_param = False
    assert is_final(await infer(channel, request))


async def test_an_error_before_the_engine_is_in_band_with_its_id(channel: RpcChannel) -> None:
    async with open_stream(channel) as stream:
        stream.send(ask("e", model="nobody"))
        stream.half_close()
        (answer,) = await read(stream)
    assert answer.infer_response.id == "e"
    assert answer.infer_response.parameters["triton_final_response"].bool_param


async def test_requests_of_one_stream_run_side_by_side(stack: Stack, channel: RpcChannel) -> None:
    async with open_stream(channel) as stream:
        stream.send(ask("long", max_tokens=400, ignore_eos=True))
        stream.send(ask("short", max_tokens=2))
        answers = await read(stream, finals=1)
        assert answers[-1].infer_response.id == "short"
        assert stack.engine_load == 1


async def test_a_stream_over_the_unary_rpc_is_refused(channel: RpcChannel) -> None:
    with pytest.raises(InvalidRequest, match="ModelStreamInfer"):
        await infer(channel, ask(stream=True))


async def test_rpcs_that_are_not_offered_are_unimplemented(channel: RpcChannel) -> None:
    with pytest.raises(Unsupported):
        await channel.unary(
            KSERVE,
            "CudaSharedMemoryRegister",
            pb.CudaSharedMemoryRegisterRequest(name="r"),
            timeout_s=WAIT_S,
        )


async def test_an_unknown_adapter_is_refused_by_name(channel: RpcChannel) -> None:
    request = ask(stream=False, lora_name="nobody")
    with pytest.raises(InvalidRequest, match=r"LoRA feature is not enabled\."):
        await infer(channel, request)


async def test_an_adapter_is_a_parameter_or_the_name_of_the_model(model_folder: Path) -> None:
    sim = SimConfig(adapters=("poet",))
    async with (
        running_stack(model_folder, sim=sim) as made,
        triton.InferenceServerClient(made.grpc) as client,
    ):
        config = (await client.get_model_config("sim")).config
        assert json.loads(config.parameters["adapters"].string_value) == ["poet"]
        assert await client.is_model_ready("poet")
        asked = [
            ("sim", GREEDY, 0), ("sim", {**GREEDY, "lora_name": "poet"}, 0), ("poet", GREEDY, 96),
        ]  # fmt: skip
        for model, parameters, cached in asked:
            answer = await client.infer(model, [text("word " * 100)], parameters=parameters)
            assert answer.get_response().model_name == model
            # Each adapter has blocks of its own.
            assert made.workers[0].engine.load().cache_hit_tokens == cached
        with pytest.raises(InferenceServerException, match="we currently support") as caught:
            await client.infer("sim", [text()], parameters={**GREEDY, "lora_name": "critic"})
        assert status_of(caught.value) == "INVALID_ARGUMENT"


@contextmanager
def streaming(address: str, answers: "queue.Queue[Any]", **options: Any) -> Iterator[Any]:
    with blocking.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put(error or result), **options)
        yield client


async def test_stop_stream_waits_for_all_answers(stack: Stack) -> None:
    answers: queue.Queue[Any] = queue.Queue()

    def visit() -> None:
        with streaming(stack.grpc, answers) as client:
            for number in range(3):
                client.async_stream_infer(
                    "sim",
                    [text(), tensor("stream", True, "BOOL")],
                    request_id=str(number),
                    enable_empty_final_response=True,
                )
            client.stop_stream()

    await asyncio.wait_for(asyncio.to_thread(visit), WAIT_S)
    responses = [it.get_response() for it in answers.queue]
    assert sorted(it.id for it in responses if is_final(it)) == ["0", "1", "2"]
    assert all(it.outputs for it in responses)


async def test_cancelling_tritonclients_requests_frees_the_engine(stack: Stack) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    forever = tensor("sampling_parameters", b'{"max_tokens": null, "ignore_eos": true}')

    def visit() -> None:
        with streaming(stack.grpc, answers) as client:
            client.async_stream_infer("sim", [text(), forever, tensor("stream", True, "BOOL")])
            answers.get(timeout=WAIT_S)
            client.stop_stream(cancel_requests=True)

    await asyncio.wait_for(asyncio.to_thread(visit), WAIT_S)
    await eventually(lambda: stack.engine_load == 0)
    cancelled = [it for it in answers.queue if isinstance(it, InferenceServerException)]
    assert [status_of(it) for it in cancelled] == ["CANCELLED"]


async def test_cancelling_async_infer_frees_the_engine(stack: Stack) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    forever = tensor("sampling_parameters", b'{"max_tokens": null, "ignore_eos": true}')
    with blocking.InferenceServerClient(stack.grpc) as client:
        call = client.async_infer(
            "sim", [text(), forever], lambda result, error: answers.put(error or result)
        )
        await eventually(lambda: stack.engine_load == 1)
        call.cancel()
        await eventually(lambda: stack.engine_load == 0)
        error = await asyncio.to_thread(answers.get, timeout=WAIT_S)
    assert status_of(error) == "CANCELLED"


async def test_a_client_timeout_is_a_deadline(stack: Stack, client: Any) -> None:
    forever = tensor("sampling_parameters", b'{"max_tokens": null, "ignore_eos": true}')
    with pytest.raises(InferenceServerException) as late:
        await client.infer("sim", [text(), forever], client_timeout=0.2)
    assert status_of(late.value) == "DEADLINE_EXCEEDED"
    await eventually(lambda: stack.engine_load == 0)


async def test_pings_of_a_waiting_client_are_no_abuse(stack: Stack) -> None:
    """A default gRPC server ends the connection after 5 s of them: too_many_pings."""
    options = blocking.KeepAliveOptions(
        keepalive_time_ms=20, keepalive_timeout_ms=5_000, keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )  # fmt: skip
    sampling = tensor("sampling_parameters", b'{"max_tokens": 900, "ignore_eos": true}')
    began_s = time.monotonic()
    async with triton.InferenceServerClient(stack.grpc, keepalive_options=options) as client:
        answer = await client.infer("sim", [text(), sampling])
    assert answer.get_response().parameters["completion_tokens"].int64_param == 900
    assert time.monotonic() - began_s > 5
