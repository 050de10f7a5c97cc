"""Completions with log probabilities, and tokens, with the gateway in the front door and alone."""

import math
from typing import Any

import openai
import pytest

from tests.integration.test_gateway_stack import GREEDY, Setup
from tests.integration.test_gateway_stack import setup as setup


@pytest.fixture
async def ids(setup: Setup) -> list[int]:
    answer = await setup.http.post("/tokenize", json={"model": "sim", "prompt": GREEDY["prompt"]})
    found: list[int] = answer.json()["tokens"]
    return found


async def test_echoed_log_probabilities_are_the_prompts_and_then_the_answers(
    setup: Setup, ids: list[int]
) -> None:
    create = setup.client.completions.create
    plain = await create(**GREEDY, logprobs=1)
    echoed = await create(**GREEDY, logprobs=1, echo=True)
    choice = echoed.choices[0]
    assert choice.text == GREEDY["prompt"] + plain.choices[0].text
    found = choice.logprobs
    count = len(ids)
    assert len(found.tokens) == count + 12
    assert "".join(found.tokens[:count]) == GREEDY["prompt"]
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    assert all(it < 0 for it in found.token_logprobs[1:count])
    assert found.token_logprobs[count:] == plain.choices[0].logprobs.token_logprobs
    assert found.text_offset[count] == len(GREEDY["prompt"])


async def test_streamed_echo_has_the_same_log_probabilities(setup: Setup) -> None:
    whole = await setup.client.completions.create(**GREEDY, logprobs=1, echo=True)
    stream = await setup.client.completions.create(**GREEDY, logprobs=1, echo=True, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices]
    for name in ("tokens", "token_logprobs", "text_offset"):
        joined = [it for part in parts if part is not None for it in getattr(part, name)]
        assert joined == getattr(whole.choices[0].logprobs, name)


async def test_the_prompt_alone_is_scored_without_an_answer(setup: Setup, ids: list[int]) -> None:
    for prompt in (GREEDY["prompt"], ids):
        answer = await setup.client.completions.create(
            model="sim", prompt=prompt, echo=True, max_tokens=0, logprobs=0
        )
        assert answer.choices[0].text == GREEDY["prompt"]
        assert len(answer.choices[0].logprobs.tokens) == len(ids)


async def test_prompt_log_probabilities_come_in_vllms_form(setup: Setup, ids: list[int]) -> None:
    extra = {"extra_body": {"prompt_logprobs": 2}}
    completion = await setup.client.completions.create(**GREEDY, **extra)
    entries: Any = completion.choices[0].prompt_logprobs
    assert entries[0] is None
    assert all(str(it) in entry for it, entry in zip(ids[1:], entries[1:], strict=True))
    entry = entries[1][str(ids[1])]
    assert math.isfinite(entry["logprob"])
    assert entry["decoded_token"]
    chat = await setup.client.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": "Hi"}], max_tokens=2, **extra
    )
    assert chat.prompt_logprobs[0] is None


async def test_the_best_of_several_are_kept_in_order(setup: Setup) -> None:
    fields = {**GREEDY, "temperature": 1, "seed": 3, "logprobs": 1}
    every = await setup.client.completions.create(**fields, n=4)
    best = await setup.client.completions.create(**fields, n=2, best_of=4)

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [it.text for it in best.choices] == [it.text for it in ranked[:2]]
    assert [it.index for it in best.choices] == [0, 1]
    assert best.usage.completion_tokens == every.usage.completion_tokens


async def test_a_long_prompt_is_cut_to_its_end(setup: Setup, ids: list[int]) -> None:
    prompt = [7] * 40 + ids
    cut = await setup.client.completions.create(
        **{**GREEDY, "prompt": prompt}, extra_body={"truncate_prompt_tokens": len(ids)}
    )
    plain = await setup.client.completions.create(**GREEDY)
    assert cut.usage.prompt_tokens == len(ids)
    assert cut.choices[0].text == plain.choices[0].text


async def test_tokens_are_those_of_a_generation_and_come_back_as_text(setup: Setup) -> None:
    body = {"model": "sim", "prompt": "Grüße, 世界!", "return_token_strs": True}
    found = (await setup.http.post("/tokenize", json=body)).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] > 1000
    back = await setup.http.post("/detokenize", json={"model": "sim", "tokens": found["tokens"]})
    assert back.json() == {"prompt": "Grüße, 世界!"}
    used = await setup.client.completions.create(**{**GREEDY, "prompt": "Grüße, 世界!"})
    assert used.usage is not None
    assert used.usage.prompt_tokens == found["count"]


async def test_messages_are_tokenized_as_a_chat_would_render_them(setup: Setup) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "sim", "messages": messages}
    found = (await setup.http.post("/tokenize", json=body)).json()
    chat = await setup.client.chat.completions.create(
        model="sim",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=1,
    )
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == found["count"]
    bare = {**body, "add_generation_prompt": False}
    assert (await setup.http.post("/tokenize", json=bare)).json()["count"] < found["count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"model": "nobody", "prompt": "x"}, 404, "model"),
        ("/tokenize", {"model": "sim"}, 400, "prompt"),
        (
            "/tokenize",
            {"model": "sim", "prompt": "x", "messages": [{"role": "user"}]},
            400,
            "prompt",
        ),
        ("/detokenize", {"model": "sim", "tokens": [10**7]}, 400, "prompt"),
        ("/detokenize", {"model": "sim", "tokens": ["x"]}, 400, "tokens[0]"),
        ("/detokenize", {"model": "nobody", "tokens": [1]}, 404, "model"),
    ],
)
async def test_what_cannot_be_tokenized_is_refused_by_name(
    setup: Setup, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = await setup.http.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


async def test_a_suffix_is_refused(setup: Setup) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await setup.client.completions.create(**GREEDY, suffix="x")
    assert caught.value.param == "suffix"
