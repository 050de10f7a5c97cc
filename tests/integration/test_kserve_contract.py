"""What clients of other LLM backends send through Triton's own client, and what they get."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import np_to_triton_dtype

from router.settings import RouterSettings
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from tests.integration.kserve_client import ask, ids_of, infer, is_final, open_stream, read
from tests.integration.stack import Stack, running_stack
from tests.unit.test_wire_tensors import WRONG
from wire import inference_pb2 as pb
from wire.parameters import set_parameter
from wire.pool import rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

FAST = SimConfig(timing=SimTiming(speedup=0))
INVALID_ARGUMENT = 3
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=FAST) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(stack.grpc) as opened:
        yield opened


def tensor(name: str, value: Any, dtype: Any = None, shape: list[int] | None = None) -> Any:
    """An input of Triton's client; texts and bytes are BYTES."""
    array = np.array(value, dtype=object if isinstance(value, str | bytes) else dtype)
    array = array.reshape([1] if shape is None else shape)
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


async def run(client: Any, *inputs: Any, **more: Any) -> Any:
    return await client.infer("sim", list(inputs), **more)


async def test_a_request_of_tensorrt_llms_ensemble_is_answered_in_its_shapes(client: Any) -> None:
    batched = [1, 1]
    answer = await run(
        client,
        tensor("text_input", "Hello there", shape=batched),
        tensor("max_tokens", 6, np.int32, batched),
        tensor("bad_words", "", shape=batched),
        tensor("stop_words", "", shape=batched),
        tensor("end_id", 2, np.int32, batched),
        tensor("pad_id", 2, np.int32, batched),
        tensor("top_k", 1, np.int32, batched),
        tensor("top_p", 1.0, np.float32, batched),
        tensor("temperature", 1.0, np.float32, batched),
        tensor("length_penalty", 1.0, np.float32, batched),
        tensor("repetition_penalty", 1.0, np.float32, batched),
        tensor("min_length", 6, np.int32, batched),
        tensor("seed", 7, np.uint64, batched),
        tensor("beam_width", 1, np.int32, batched),
        tensor("stream", False, np.bool_, batched),
        tensor("return_log_probs", True, np.bool_, batched),
        tensor("return_num_output_tokens", True, np.bool_, batched),
        tensor("exclude_input_in_output", True, np.bool_, batched),
    )
    assert answer.as_numpy("text_output").shape == (1, 1)
    assert answer.as_numpy("num_output_tokens").tolist() == [[6]]
    each = answer.as_numpy("output_log_probs")
    assert each.shape == (1, 1, 6)
    assert answer.as_numpy("cum_log_probs") == pytest.approx(each.sum(), rel=1e-4)


@pytest.mark.parametrize("shape", [[], [1], [1, 1]])
async def test_the_prompts_rank_is_the_answers(client: Any, shape: list[int]) -> None:
    answer = await run(
        client,
        tensor("text_input", "Hello there", shape=shape),
        tensor("max_tokens", 3, np.int32, shape),
        tensor("return_finish_reason", True, np.bool_, shape),
    )
    assert list(answer.as_numpy("text_output").shape) == (shape or [1])
    assert answer.as_numpy("finish_reason").ravel().tolist() == [b"length"]


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [("max_tokens", 3, dtype) for dtype in (np.int8, np.uint16, np.int64, np.uint64)]
    + [("temperature", 0.5, dtype) for dtype in (np.float16, np.float32, np.float64)]
    + [("stream", 0, np.int32), ("max_tokens", "3", None), ("temperature", "0.5", None)],
)
async def test_numbers_may_have_any_datatype_that_holds_them(
    client: Any, name: str, value: Any, dtype: Any
) -> None:
    inputs = [tensor("text_input", "Hi"), tensor(name, value, dtype)]
    assert (await run(client, *inputs)).as_numpy("text_output").shape == (1,)


async def test_several_answers_stand_side_by_side(client: Any) -> None:
    answer = await run(
        client,
        tensor("text_input", "Hello there"),
        tensor("n", 3, np.int32),
        tensor("max_tokens", 5, np.int32),
        tensor("temperature", 1.0, np.float32),
        tensor("ignore_eos", True, np.bool_),
        tensor("return_output_ids", True, np.bool_),
        tensor("return_finish_reason", True, np.bool_),
    )
    assert answer.as_numpy("text_output").shape == (3,)
    assert answer.as_numpy("output_ids").shape == (3, 5)
    assert answer.as_numpy("finish_reason").tolist() == [b"length"] * 3


async def test_token_ids_in_and_out_need_no_text(client: Any) -> None:
    text = await run(
        client,
        tensor("input_ids", [5, 6, 7], np.int64, [1, 3]),
        tensor("input_lengths", 3, np.int32, [1, 1]),
        tensor("request_output_len", 4, np.int32, [1, 1]),
        tensor("runtime_top_k", 1, np.int32, [1, 1]),
        tensor("return_output_ids", True, np.bool_, [1, 1]),
        outputs=[triton.InferRequestedOutput("output_ids")],
    )
    assert text.as_numpy("output_ids").shape == (1, 4)
    assert [it.name for it in text.get_response().outputs] == ["output_ids"]


async def test_tools_reach_the_models_chat_template(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% for t in tools or [] %} {{ t.function.name }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "Hello there"}]
    async with (
        running_stack(tmp_path, sim=FAST) as stack,
        triton.InferenceServerClient(stack.grpc) as client,
    ):
        counts = []
        for more in ({}, {"tools": [TOOL], "tool_choice": "auto"}):
            chat = tensor("messages", json.dumps({"messages": messages} | more))
            answer = await run(client, chat, tensor("return_num_input_tokens", True, np.bool_))
            counts.append(answer.as_numpy("num_input_tokens")[0])
    assert counts == [2, 3]


async def test_an_id_is_echoed_and_none_stays_none(channel: RpcChannel) -> None:
    assert (await infer(channel, ask("", stream=False))).id == ""
    assert (await infer(channel, ask("é 1", stream=False))).id == "é 1"
    async with open_stream(channel) as stream:
        for name in ("same", "same", "", ""):
            stream.send(ask(name))
        answers = [it.infer_response for it in await read(stream, finals=4)]
    assert sorted(it.id for it in answers if is_final(it)) == ["", "", "same", "same"]
    assert sum(len(ids_of(it)) for it in answers if it.id == "same") == 16


@pytest.mark.parametrize("wanted", [True, False, None])
async def test_the_last_full_response_is_the_final_one_and_no_empty_one_follows(
    channel: RpcChannel, wanted: bool | None
) -> None:
    request = ask("r")
    if wanted is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = wanted
    async with open_stream(channel) as stream:
        stream.send(request)
        stream.half_close()
        answers = [it.infer_response async for it in stream]
    assert [is_final(it) for it in answers] == [False] * (len(answers) - 1) + [True]
    assert all(it.outputs for it in answers)
    del request.inputs[-1], request.raw_input_contents[-1]
    assert is_final(await infer(channel, request))


async def test_unknown_parameters_of_tritons_are_refused_and_the_clients_own_are_not(
    client: Any, channel: RpcChannel
) -> None:
    await run(client, tensor("text_input", "Hi"), parameters={"mine": "x", "other": 3})
    request = ask(stream=False)
    request.parameters["triton_something"].bool_param = True
    with pytest.raises(Exception, match="triton_something") as caught:
        await infer(channel, request)
    assert getattr(caught.value, "code", None) == INVALID_ARGUMENT


async def test_each_malformed_tensor_gets_its_error_and_the_stream_lives_on(
    channel: RpcChannel,
) -> None:
    async with open_stream(channel) as stream:
        for name, (message, _) in WRONG.items():
            request = pb.ModelInferRequest.FromString(message.SerializeToString())
            request.model_name, request.id = "sim", name
            stream.send(request)
        stream.send(ask("good"))
        answers = await read(stream, finals=len(WRONG) + 1)
    ends = {it.infer_response.id: it for it in answers}
    for name, (_, text) in WRONG.items():
        assert text in ends[name].error_message, name
        assert "'x'" in ends[name].error_message or "raw entries" in ends[name].error_message
        code = ends[name].infer_response.parameters["penstock_code"].int64_param
        assert code == INVALID_ARGUMENT, name
    assert not ends["good"].error_message


@pytest.mark.parametrize("case", ["no datatype", "short", "element cut", "raw and typed", "deep"])
async def test_a_malformed_tensor_is_an_invalid_argument_of_the_unary_rpc(
    channel: RpcChannel, case: str
) -> None:
    message, text = WRONG[case]
    request = pb.ModelInferRequest.FromString(message.SerializeToString())
    request.model_name = "sim"
    with pytest.raises(Exception, match=text) as caught:
        await infer(channel, request)
    assert getattr(caught.value, "code", None) == INVALID_ARGUMENT


@pytest.mark.parametrize("sequence", [7, "conversation"])
async def test_requests_of_a_sequence_go_to_one_worker_until_its_end(
    model_folder: Path, sequence: int | str
) -> None:
    config = FrontDoorConfig(routing=RouterSettings(policy="round-robin"))
    async with running_stack(model_folder, workers=3, sim=FAST, config=config) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)

        async def worker_of(sequence: int | str | None, *, end: bool = False) -> str:
            request = ask(stream=False, max_tokens=1)
            request.parameters["penstock_explain_route"].bool_param = True
            request.parameters["sequence_end"].bool_param = end
            if sequence is not None:
                set_parameter(request.parameters, "sequence_id", sequence)
            answer = await infer(channel, request)
            return str(answer.parameters["penstock_worker"].string_param)

        assert len({await worker_of(None) for _ in range(3)}) == 3
        home = await worker_of(sequence)
        assert {await worker_of(sequence) for _ in range(6)} == {home}
        assert await worker_of(sequence, end=True) == home
        assert len({await worker_of(sequence, end=True) for _ in range(3)}) == 3
        await channel.close()
