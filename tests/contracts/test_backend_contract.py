"""What the gateway may expect of any Backend: the data plane itself, or a KServe client of it."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway_http.kserve_backend import KServeBackend
from gateway_http.metered import MeteredBackend
from runtime.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    WorkerLost,
)
from runtime.grpc_client import RpcChannel
from runtime.tracing import Tracing
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire.generate import Backend, GenerateDelta, GenerateRequest
from wire.pool import rpc_types
from wire.sampling import make_sampling

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Setup:
    backend: Backend
    stack: Stack


@pytest.fixture(params=["front door", "KServe client"])
async def setup(request: Any, model_folder: Path) -> AsyncIterator[Setup]:
    async with running_stack(model_folder) as stack:
        if request.param == "front door":
            yield Setup(stack.door.backend, stack)
            return
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        yield Setup(MeteredBackend(KServeBackend(channel), Tracing()), stack)
        await channel.close()


def asked(stream: bool = True, **fields: Any) -> GenerateRequest:
    sampling = {"max_tokens": 12, "temperature": 0, "ignore_eos": True} | fields.pop("sampling", {})
    prompt = {} if fields.keys() & {"messages", "prompt_token_ids"} else {"prompt": "Hello there"}
    values = {"request_id": "r1", "model": "sim", "stream": stream, **prompt, **fields}
    return GenerateRequest(sampling=make_sampling(sampling), **values)


async def answer(setup: Setup, request: GenerateRequest) -> list[GenerateDelta]:
    return [delta async for delta in setup.backend.generate(request)]


def text_of(deltas: list[GenerateDelta], index: int = 0) -> str:
    return "".join(c.text for delta in deltas for c in delta.choices if c.index == index)


def ids_of(deltas: list[GenerateDelta], index: int = 0) -> list[int]:
    return [i for delta in deltas for c in delta.choices if c.index == index for i in c.token_ids]


async def test_models_have_a_name_and_their_sizes(setup: Setup) -> None:
    (card,) = await setup.backend.models()
    served = setup.stack.workers[0].card
    assert card.name == "sim"
    assert card.context_length == served.context_length
    assert card.vocab_size == served.vocab_size > 0


async def test_readiness_is_told_for_the_server_and_for_a_model(setup: Setup) -> None:
    assert await setup.backend.is_ready()
    assert await setup.backend.is_ready("sim")


async def test_streamed_deltas_joined_are_the_whole_answer(setup: Setup) -> None:
    streamed = await answer(setup, asked())
    whole = await answer(setup, asked(stream=False))
    assert text_of(streamed) == text_of(whole) != ""
    assert ids_of(streamed) == ids_of(whole)
    assert len(ids_of(whole)) == 12
    assert len(whole) == 1


@pytest.mark.parametrize("refused", [0, 1, 2, 3])
async def test_text_that_is_told_and_text_that_is_yielded_are_in_order(
    setup: Setup, refused: int
) -> None:
    parts: list[str] = []
    asked_for = 0

    def on_text(text: str) -> bool:
        nonlocal asked_for
        asked_for += 1
        taken = not refused or asked_for % refused == 0
        if taken:
            parts.append(text)
        return taken

    request = asked(sampling={"max_tokens": 40})
    deltas = 0
    async for delta in setup.backend.generate(request, on_text):
        deltas += 1
        parts.extend(choice.text for choice in delta.choices)
        assert delta.usage is None or delta.usage.completion_tokens == 40
    assert deltas >= 2
    assert asked_for > 0 or isinstance(setup.backend, MeteredBackend)
    assert "".join(parts) == text_of(await answer(setup, request))


async def test_only_the_last_delta_is_final_and_has_the_usage(setup: Setup) -> None:
    deltas = await answer(setup, asked())
    assert [delta.final for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    usage = deltas[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens == deltas[0].prompt_tokens > 0
    reasons = [choice.finish_reason for delta in deltas for choice in delta.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]


async def test_cached_prompt_tokens_are_counted(setup: Setup) -> None:
    request = asked(prompt_token_ids=list(range(100, 164)))
    first = await answer(setup, request)
    again = await answer(setup, request)
    assert first[-1].usage is not None
    assert again[-1].usage is not None
    assert first[-1].usage.cached_tokens == 0
    assert again[-1].usage.cached_tokens > 0


async def test_messages_and_token_prompts_are_answered(setup: Setup) -> None:
    chat = await answer(setup, asked(messages=MESSAGES))
    longer = await answer(
        setup, asked(messages=MESSAGES, chat_template_kwargs={"add_generation_prompt": False})
    )
    tokens = await answer(setup, asked(prompt_token_ids=[5, 6, 7]))
    assert chat[0].prompt_tokens > longer[0].prompt_tokens > 3
    assert tokens[0].prompt_tokens == 3
    assert len(ids_of(tokens)) == 12


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_in_front(setup: Setup, stream: bool) -> None:
    plain = text_of(await answer(setup, asked(stream=stream)))
    echoed = text_of(await answer(setup, asked(stream=stream, echo=True)))
    assert echoed == "Hello there" + plain


async def test_every_choice_ends_once(setup: Setup) -> None:
    sampling = {"n": 3, "temperature": 1.0, "seed": 3}
    deltas = await answer(setup, asked(sampling=sampling))
    ends = [c.index for delta in deltas for c in delta.choices if c.finish_reason is not None]
    assert sorted(ends) == [0, 1, 2]
    assert [len(ids_of(deltas, index)) for index in range(3)] == [12, 12, 12]


async def test_log_probabilities_come_for_every_token(setup: Setup) -> None:
    deltas = await answer(setup, asked(sampling={"logprobs": 2}))
    tokens = [t for delta in deltas for c in delta.choices for t in c.logprobs or ()]
    assert [token.token_id for token in tokens] == ids_of(deltas)
    assert all(len(token.top) >= 2 for token in tokens)
    assert all(token.logprob <= 0 for token in tokens)
    assert "".join(token.token for token in tokens) == text_of(deltas)


async def test_a_stop_string_ends_the_answer_before_it(setup: Setup) -> None:
    text = text_of(await answer(setup, asked()))
    stop = text[len(text) // 2 :][:3]
    deltas = await answer(setup, asked(sampling={"stop": [stop]}))
    assert text_of(deltas) == text[: text.index(stop)]
    assert deltas[-1].choices[0].finish_reason == "stop"
    assert deltas[-1].choices[0].stop_reason == stop


async def test_without_a_limit_an_answer_goes_past_any_default(setup: Setup) -> None:
    seen = 0
    async with aclosing(setup.backend.generate(asked(sampling={"max_tokens": None}))) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            seen += sum(len(choice.token_ids) for choice in delta.choices)
            if seen > 64:
                break
    assert seen > 64


async def test_closing_the_iterator_frees_the_engine(setup: Setup) -> None:
    async with aclosing(setup.backend.generate(asked(sampling={"max_tokens": None}))) as deltas:  # type: ignore[type-var]
        await anext(deltas)
    await eventually(lambda: setup.stack.engine_load == 0)
    await eventually(lambda: setup.stack.door.in_flight == 0)


async def test_an_unknown_model_is_not_found(setup: Setup) -> None:
    with pytest.raises(ModelNotFound) as refused:
        await answer(setup, asked(model="other"))
    assert refused.value.param == "model"


async def test_a_prompt_beyond_the_context_is_refused_as_such(setup: Setup) -> None:
    length = setup.stack.workers[0].card.context_length
    with pytest.raises(ContextLengthExceeded) as refused:
        await answer(setup, asked(prompt_token_ids=[5] * (length + 1)))
    assert str(length) in refused.value.message


async def test_a_wrong_prompt_names_its_field(setup: Setup) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await answer(setup, asked(messages=[{"role": "user", "content": 3}]))
    assert (refused.value.param or "").startswith("messages")


async def test_a_passed_deadline_is_an_error_of_its_own(setup: Setup) -> None:
    with pytest.raises(DeadlineExceeded):
        await answer(setup, asked(deadline_s=time.monotonic() - 1))


async def test_a_server_that_is_not_there_is_an_error_and_not_ready() -> None:
    channel = RpcChannel("127.0.0.1:1", rpc_types=rpc_types)
    backend = KServeBackend(channel)
    assert not await backend.is_ready()
    assert not await backend.is_ready("sim")
    with pytest.raises(WorkerLost):
        _ = [delta async for delta in backend.generate(asked())]
    await channel.close()
