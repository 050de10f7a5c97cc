import math
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ContextLengthExceeded, InvalidRequest
from server.text.codec import ChoiceDecoder, EncodedPrompt, TextCodec
from tests.unit.text_samples import byte_fallback, byte_level, save_model
from wire.cards import ModelCard
from wire.generate import ChoiceDelta, GenerateRequest
from wire.sampling import Sampling
from wire.tokens import FinishReason, TokenDelta, TokenLogprob

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{% endfor %}{{ '>' if add_generation_prompt }}"


def make_codec(folder: Path, backend: Any) -> TextCodec:
    save_model(folder, backend, chat_template=TEMPLATE, eos_token="</s>")
    card = ModelCard(
        name="m",
        path=str(folder),
        context_length=100,
        vocab_size=backend.get_vocab_size(),
        block_size=16,
        eos_token_ids=(2,),
    )
    return TextCodec(card)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return make_codec(tmp_path_factory.mktemp("model"), byte_level())


def request(**fields: Any) -> GenerateRequest:
    sampling = Sampling(**fields.pop("sampling", {}))
    return GenerateRequest(request_id="r", model="m", sampling=sampling, **fields)


def ids_of(codec: TextCodec, text: str) -> list[int]:
    return codec.tokenizer.encode(text, add_special_tokens=False)


def decoder(codec: TextCodec, **sampling: Any) -> ChoiceDecoder:
    return codec.decoder(request(prompt="x", sampling=sampling))


def run(choice: ChoiceDecoder, deltas: Sequence[TokenDelta]) -> list[ChoiceDelta]:
    return [fresh for delta in deltas if (fresh := choice.feed(delta)) is not None]


def one_by_one(ids: Sequence[int], finish: FinishReason | None = None) -> list[TokenDelta]:
    deltas = [TokenDelta(token_ids=[token_id]) for token_id in ids]
    deltas[-1].finish_reason = finish
    return deltas


def test_a_prompt_becomes_ids(codec: TextCodec) -> None:
    prompt = codec.encode_request(request(prompt="the fox"))
    assert prompt == EncodedPrompt(array("i", ids_of(codec, "the fox")), "the fox")


def test_messages_go_through_the_template_once(codec: TextCodec) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    prompt = codec.encode_request(request(messages=messages))
    assert prompt.text == "<s>the fox>"
    assert list(prompt.token_ids) == [0, *ids_of(codec, "the fox>")]
    open_end = {"continue_final_message": True}
    prompt = codec.encode_request(request(messages=messages, chat_template_kwargs=open_end))
    assert prompt.text == "<s>the fox"


def test_prompt_ids_are_taken_as_they_are(codec: TextCodec) -> None:
    assert codec.encode_request(request(prompt_token_ids=(5, 6))) == EncodedPrompt(
        array("i", [5, 6])
    )


def test_prompt_ids_have_their_text_where_it_is_wanted(codec: TextCodec) -> None:
    ids = ids_of(codec, "the fox")
    prompt = codec.encode_request(request(prompt_token_ids=ids, echo=True))
    assert prompt == EncodedPrompt(array("i", ids), "the fox")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, -1]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, 10**6]}, "prompt_token_ids"),
        ({"prompt": ""}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "\udfff"}, "prompt"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages"),
    ],
)
def test_prompts_that_cannot_be_encoded_are_refused(
    codec: TextCodec, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        codec.encode_request(request(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_text_that_is_far_too_long_is_refused_by_its_beginning(
    codec: TextCodec, field: str
) -> None:
    text = "Hello there, " * 1_000_000
    value = text if field == "prompt" else [{"role": "user", "content": text}]
    with pytest.raises(ContextLengthExceeded, match=r"over \d{3,4} tokens") as caught:
        codec.encode_request(request(**{field: value}))
    assert caught.value.param == field


def test_a_long_text_of_long_tokens_is_encoded_whole(tmp_path: Path) -> None:
    backend = byte_level()
    backend.add_tokens(["-" * 100])
    codec = make_codec(tmp_path, backend)
    assert len(codec.encode_request(request(prompt="-" * 100 * 150)).token_ids) >= 150


def test_only_long_texts_are_long(codec: TextCodec) -> None:
    long = "word " * 4000
    parts = [{"type": "text", "text": long}]
    assert codec.is_long(request(prompt=long))
    assert codec.is_long(request(messages=[{"role": "user", "content": parts}]))
    short = [{"role": "user", "content": "short"}]
    described = [{"type": "function", "function": {"name": "f", "description": long}}]
    assert codec.is_long(request(messages=short, tools=described))
    assert codec.is_long(request(messages=short, chat_template_kwargs={"documents": [long]}))
    assert not codec.is_long(request(messages=short))
    assert not codec.is_long(request(prompt="short"))
    assert not codec.is_long(request(prompt_token_ids=range(50_000)))
    assert codec.is_long(request(prompt_token_ids=range(50_000), echo=True))
    assert not codec.is_long(request(prompt_token_ids=range(50), echo=True))


def test_every_token_gives_a_delta_until_the_end(codec: TextCodec) -> None:
    ids = ids_of(codec, "the lazy dog")
    choice = decoder(codec)
    deltas = run(choice, one_by_one(ids, FinishReason.LENGTH))
    assert "".join(delta.text for delta in deltas) == "the lazy dog"
    assert [delta.token_ids for delta in deltas] == [[token_id] for token_id in ids]
    assert [delta.finish_reason for delta in deltas] == [None] * (len(ids) - 1) + ["length"]
    assert choice.finished
    assert choice.feed(TokenDelta(token_ids=[5])) is None


def test_an_empty_delta_adds_nothing(codec: TextCodec) -> None:
    assert decoder(codec).feed(TokenDelta()) is None


def test_a_cut_character_comes_out_at_the_end(codec: TextCodec) -> None:
    first = ids_of(codec, "🦊")[0]
    choice = decoder(codec)
    deltas = run(choice, [TokenDelta(token_ids=[first]), end()])
    assert [delta.text for delta in deltas] == ["", "\ufffd"]


def end(*ids: int, reason: FinishReason = FinishReason.LENGTH, **fields: Any) -> TokenDelta:
    return TokenDelta(token_ids=list(ids), finish_reason=reason, **fields)


def test_the_token_that_ended_a_choice_has_no_text(codec: TextCodec) -> None:
    fox = ids_of(codec, " fox")
    for ender, fields in ((2, {}), (1, {}), (fox[-1], {"stop_reason": fox[-1]})):
        last = end(*fox, ender, reason=FinishReason.STOP, **fields)
        fresh = decoder(codec, skip_special_tokens=False).feed(last)
        assert fresh is not None
        assert fresh.text == " fox"
        assert fresh.token_ids == [*fox, ender]
        assert fresh.finish_reason == "stop"
        assert fresh.stop_reason == fields.get("stop_reason")


def test_the_token_that_ended_a_choice_is_shown_on_request(codec: TextCodec) -> None:
    choice = decoder(codec, skip_special_tokens=False, include_stop_str_in_output=True)
    fresh = choice.feed(end(2, reason=FinishReason.STOP))
    assert fresh is not None
    assert fresh.text == "<|im_end|>"


def test_an_ending_id_in_the_middle_is_text(codec: TextCodec) -> None:
    fresh = decoder(codec, skip_special_tokens=False, ignore_eos=True).feed(end(2, 2))
    assert fresh is not None
    assert fresh.text == "<|im_end|><|im_end|>"


def test_a_stop_string_ends_the_choice_at_its_token(codec: TextCodec) -> None:
    ids = ids_of(codec, "the lazy dog, and then more")
    choice = decoder(codec, stop=(" dog,",))
    deltas = run(choice, one_by_one(ids))
    assert "".join(delta.text for delta in deltas) == "the lazy"
    assert choice.finished
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", " dog,")
    assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_tokens_after_a_stop_string_in_one_delta_are_dropped(codec: TextCodec) -> None:
    before, after = ids_of(codec, "the lazy dog"), ids_of(codec, " and then more")
    logprobs = [[TokenLogprob(i, -1.0, 1)] for i in [*before, *after]]
    delta = TokenDelta(token_ids=[*before, *after], logprobs=logprobs)
    delta.finish_reason = FinishReason.LENGTH
    fresh = decoder(codec, stop="dog", logprobs=0).feed(delta)
    assert fresh is not None
    assert fresh.text == "the lazy "
    assert fresh.token_ids == before
    assert fresh.logprobs is not None
    assert len(fresh.logprobs) == len(before)
    assert fresh.cumulative_logprob == -float(len(before))
    assert (fresh.finish_reason, fresh.stop_reason) == ("stop", "dog")


def test_a_stop_string_is_shown_on_request(codec: TextCodec) -> None:
    ids = ids_of(codec, "the lazy dog, and")
    choice = decoder(codec, stop="dog", include_stop_str_in_output=True)
    assert "".join(delta.text for delta in run(choice, one_by_one(ids))) == "the lazy dog"


def test_stop_strings_before_min_tokens_do_not_count(codec: TextCodec) -> None:
    ids = ids_of(codec, "dog dog dog")
    first = len(ids_of(codec, "dog"))
    choice = decoder(codec, stop="dog", min_tokens=first)
    deltas = run(choice, one_by_one(ids, FinishReason.LENGTH))
    assert "".join(delta.text for delta in deltas) == "dog "
    assert sum(len(delta.token_ids) for delta in deltas) == len(ids_of(codec, "dog dog"))


def test_held_text_comes_out_with_the_end(codec: TextCodec) -> None:
    ids = ids_of(codec, "the lazy")
    choice = decoder(codec, stop="lazy dog")
    deltas = run(choice, [TokenDelta(token_ids=ids), end(2, reason=FinishReason.STOP)])
    assert [delta.text for delta in deltas] == ["the ", "lazy"]
    assert deltas[-1].stop_reason is None


def test_log_probabilities_have_texts_and_the_likeliest_tokens(codec: TextCodec) -> None:
    own, other = ids_of(codec, " fox")[0], ids_of(codec, " dog")[0]
    choice = decoder(codec, logprobs=2)
    unlikely = [TokenLogprob(own, -5.0, 9), TokenLogprob(other, -1.0, 1), TokenLogprob(7, -2.0, 2)]
    second = [TokenLogprob(own, -2.5, 2), TokenLogprob(other, -0.5, 1)]
    deltas = run(
        choice,
        [
            TokenDelta(token_ids=[own], logprobs=[unlikely]),
            end(own, logprobs=[second]),
        ],
    )
    assert [delta.cumulative_logprob for delta in deltas] == [-5.0, -7.5]
    first, last = (delta.logprobs[0] for delta in deltas if delta.logprobs)
    assert (first.token_id, first.logprob, first.rank) == (own, -5.0, 9)
    assert first.token.startswith(" ")
    assert [entry.token_id for entry in first.top] == [other, 7]
    assert [entry.token_id for entry in last.top] == [other, own]


def test_without_likeliest_tokens_only_the_sampled_one_is_told(codec: TextCodec) -> None:
    delta = end(5, logprobs=[[TokenLogprob(5, -0.25, 1)]])
    fresh = decoder(codec, logprobs=0).feed(delta)
    assert fresh is not None
    assert fresh.logprobs is not None
    assert fresh.logprobs[0].top == ()
    assert math.isclose(fresh.cumulative_logprob or 0, -0.25)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 404), max_size=30),
    st.lists(st.integers(0, 30), max_size=8),
    st.lists(st.sampled_from(["e", "th", " a", "\ufffd", "the"]), max_size=2),
    st.integers(0, 6),
    st.booleans(),
)
def test_chunks_of_tokens_do_not_change_the_answer(
    codec: TextCodec, ids: list[int], borders: list[int], stops: list[str], free: int, show: bool
) -> None:
    sampling = {"stop": tuple(stops), "min_tokens": free, "include_stop_str_in_output": show}
    inside = [0, *sorted(min(border, len(ids)) for border in borders), len(ids)]
    parts = [TokenDelta(token_ids=ids[a:b]) for a, b in pairwise(inside)]
    chunked = run(decoder(codec, **sampling), [*parts, end()])
    single = run(decoder(codec, **sampling), [*(TokenDelta(token_ids=[i]) for i in ids), end()])
    assert summary(chunked) == summary(single)
    if not stops:
        assert summary(single)[0] == codec.tokenizer.decode(ids)


def summary(deltas: Sequence[ChoiceDelta]) -> tuple[str, list[int], Any, Any]:
    text = "".join(delta.text for delta in deltas)
    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    return text, ids, deltas[-1].finish_reason, deltas[-1].stop_reason


def test_the_first_word_after_a_prompt_keeps_its_space(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, byte_fallback())
    asked = request(prompt="the lazy")
    prompt = codec.encode_request(asked)
    dog = codec.tokenizer.encode("dog", add_special_tokens=False)
    deltas = run(codec.decoder(asked, 0, prompt), one_by_one(dog, FinishReason.LENGTH))
    assert "".join(delta.text for delta in deltas) == " dog"
