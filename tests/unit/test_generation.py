"""The merging slot of one request."""

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import Cancelled, EngineFailed, ServingError, WorkerLost
from runtime.request_record import RequestRecord
from server.generation import Generation
from server.text.codec import TextCodec
from wire.cards import ModelCard
from wire.generate import GenerateRequest
from wire.sampling import make_sampling
from wire.tokens import FinishReason, TokenDelta


class Owner:
    """Remembers what a generation tells its owner."""

    def __init__(self, *, takes_over: bool = False) -> None:
        self.released: list[bool] = []
        self.takes_over = takes_over

    def release(
        self, generation: Generation, *, cancel: bool, error: ServingError | None = None
    ) -> None:
        self.released.append(cancel)

    def first_token(self, generation: Generation) -> None:
        pass

    def lost(self, generation: Generation, error: ServingError) -> bool:
        return self.takes_over


@pytest.fixture(scope="session")
def codec(model_folder: Path) -> TextCodec:
    card = ModelCard(
        name="m", path=str(model_folder), context_length=64, vocab_size=49152, block_size=32
    )
    return TextCodec(card)


class Running:
    """A begun generation, its owner and how often it said that it is ready."""

    def __init__(
        self, codec: TextCodec, *, stream: bool = True, echo: bool = False, **sampling: Any
    ) -> None:
        self.codec = codec
        self.owner = Owner()
        self.signals = 0
        request = GenerateRequest(
            request_id="r",
            model="m",
            prompt="Say:",
            stream=stream,
            echo=echo,
            sampling=make_sampling({"temperature": 1} | sampling),
        )
        record = RequestRecord(request_id="r", endpoint="test", started_s=0.0)
        record.admitted("m")
        self.generation = Generation(request, self.owner, record)
        self.generation.on_ready = self._count
        self.generation.begin(codec, codec.encode_request(request))

    def _count(self) -> None:
        self.signals += 1

    def put(self, text: str, *, index: int = 0, end: FinishReason | None = None) -> None:
        for token_id in self.codec.tokenizer.encode(text, add_special_tokens=False):
            self.generation.put(TokenDelta(index=index, token_ids=[token_id]))
        if end is not None:
            self.generation.put(TokenDelta(index=index, finish_reason=end))

    def take(self) -> Any:
        return self.generation.take()


def test_deltas_merge_until_taken_and_signal_once(codec: TextCodec) -> None:
    running = Running(codec)
    running.put("one two three")
    assert running.signals == 1
    assert running.take().choices[0].text == "one two three"
    assert running.take() is None
    running.put(" four")
    assert running.signals == 2


def test_a_request_that_does_not_stream_signals_at_its_end_only(codec: TextCodec) -> None:
    running = Running(codec, stream=False)
    running.put("one two")
    assert running.signals == 0
    running.put(" three", end=FinishReason.LENGTH)
    assert running.signals == 1
    delta = running.generation.whole()
    assert delta.choices[0].text == "one two three"
    assert delta.choices[0].finish_reason == "length"
    assert delta.usage is not None
    assert delta.usage.completion_tokens == len(delta.choices[0].token_ids)


def test_the_last_delta_has_the_usage_and_the_owner_is_told_once(codec: TextCodec) -> None:
    running = Running(codec)
    running.put("done", end=FinishReason.STOP)
    assert running.take().final
    assert running.take() is None
    assert running.owner.released == [False]


def test_a_stop_string_ends_the_request_and_cancels_the_engine(codec: TextCodec) -> None:
    running = Running(codec, stop=["STOP"])
    running.put("before STOP after")
    delta = running.take()
    assert delta.choices[0].text == "before "
    assert delta.choices[0].finish_reason == "stop"
    assert delta.choices[0].stop_reason == "STOP"
    assert delta.final
    assert running.owner.released == [True]


def test_it_is_over_when_every_choice_is(codec: TextCodec) -> None:
    running = Running(codec, n=2)
    running.put("first", index=0, end=FinishReason.STOP)
    assert not running.take().final
    running.put("second", index=1, end=FinishReason.LENGTH)
    delta = running.take()
    assert delta.final
    assert [(c.index, c.text, c.finish_reason) for c in delta.choices] == [(1, "second", "length")]


def test_a_choice_cut_by_its_stop_string_still_has_to_be_cancelled(codec: TextCodec) -> None:
    running = Running(codec, n=2, stop=["x!"])
    running.put("x!", index=0)
    running.put("other", index=1, end=FinishReason.STOP)
    assert running.owner.released == [True]


def test_echo_puts_the_prompt_before_every_choice(codec: TextCodec) -> None:
    running = Running(codec, echo=True, n=2)
    running.put(" a", index=0)
    assert running.signals == 1
    assert [c.text for c in running.take().choices] == ["Say: a", "Say:"]
    running.put(" b", index=1)
    assert [c.text for c in running.take().choices] == [" b"]


def test_echo_comes_before_text_that_could_be_passed_on_at_once(codec: TextCodec) -> None:
    running = Running(codec, echo=True)
    passed_on: list[str] = []

    def pass_on(text: str) -> bool:
        passed_on.append(text)
        return True

    running.generation.on_text = pass_on
    running.generation.put(TokenDelta())
    running.generation.put_tokens(codec.tokenizer.encode(" a", add_special_tokens=False), 0.0)
    assert passed_on == []
    assert running.take().choices[0].text == "Say: a"
    running.generation.put_tokens(codec.tokenizer.encode(" b", add_special_tokens=False), 0.0)
    assert passed_on == [" b"]


def test_an_error_comes_after_the_text_before_it(codec: TextCodec) -> None:
    running = Running(codec)
    running.put("half")
    running.generation.fail(WorkerLost("gone"))
    assert running.take().choices[0].text == "half"
    with pytest.raises(WorkerLost, match="gone"):
        running.take()
    assert running.owner.released == [True]


def test_an_error_replaces_the_partial_answer_of_a_request_that_does_not_stream(
    codec: TextCodec,
) -> None:
    running = Running(codec, stream=False)
    running.put("half")
    running.generation.fail(WorkerLost("gone"))
    assert running.signals == 1
    with pytest.raises(WorkerLost):
        running.generation.whole()


def test_nothing_is_said_after_the_end(codec: TextCodec) -> None:
    running = Running(codec)
    running.put("done", end=FinishReason.STOP)
    running.take()
    running.put("late")
    running.generation.fail(WorkerLost("late"))
    running.generation.cancel()
    assert running.take() is None
    assert running.owner.released == [False]


def test_the_error_is_held_back_while_another_worker_takes_over(codec: TextCodec) -> None:
    running = Running(codec)
    running.owner.takes_over = True
    running.put("half")
    running.generation.fail(WorkerLost("gone"))
    running.put(" more", end=FinishReason.STOP)
    delta = running.take()
    assert delta.choices[0].text == "half more"
    assert delta.final


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_an_end_nobody_asked_for_is_an_error(codec: TextCodec, reason: FinishReason) -> None:
    running = Running(codec)
    running.generation.put(TokenDelta(finish_reason=reason))
    with pytest.raises(EngineFailed, match=reason.label):
        running.take()


def test_cancel_frees_the_engine_once_and_stays_silent(codec: TextCodec) -> None:
    running = Running(codec)
    running.put("half")
    running.take()
    running.generation.cancel()
    running.generation.cancel()
    assert running.owner.released == [True]
    with pytest.raises(Cancelled):
        running.take()
