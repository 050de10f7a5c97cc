"""Sampling parameters: every field's bounds, the coercion of strings, and the field named."""

import math
from typing import Any

import pytest

from runtime.errors import InvalidRequest
from wire.sampling import Sampling, make_sampling

BIG = 2**31 - 1
# Field: (accepted values, refused values).
NUMBERS: dict[str, tuple[list[Any], list[Any]]] = {
    "n": ([1, 128, "2", 2.0], [0, -1, 129, 1.5, True]),
    "max_tokens": ([1, BIG, "16", None], [0, -1, BIG + 1, 1.5, True, ""]),
    "min_tokens": ([0, BIG, "3"], [-1, BIG + 1, 0.5, False]),
    "temperature": ([0, 2, 0.7, "0", "0.7"], [-0.1, 2.1, True, None]),
    "top_p": ([1e-9, 1, "0.9"], [0, -1, 1.01, None]),
    "top_k": ([-1, 0, BIG, "5"], [-2, BIG + 1, 0.5]),
    "min_p": ([0, 1, "0.1"], [-0.1, 1.1]),
    "seed": ([-(2**63), 2**63 - 1, 0, "42", None], [-(2**63) - 1, 2**63, 0.5, True]),
    "presence_penalty": ([-2, 2, "1.5"], [-2.1, 2.1]),
    "frequency_penalty": ([-2, 2, "1.5"], [-2.1, 2.1]),
    "repetition_penalty": ([0.01, 2, "1.1"], [0, -1, 2.1]),
    "logprobs": ([0, 20, "5", None], [-1, 21, 1.5, True]),
    "prompt_logprobs": ([0, 20, "5", None], [-1, 21, 1.5, True]),
}
NEVER_A_NUMBER = [math.nan, math.inf, -math.inf, "nan", "inf", 2**70, -(2**70), "x", [], {}]
BOOLEANS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
OTHERS: dict[str, tuple[list[Any], list[Any]]] = {
    "stop": (["a", ["a", "b"], []], ["", [""], [1], 1, None, {}]),
    "bad_words": ([["a"], []], [[""], [1], 1]),
    "stop_token_ids": ([[0, BIG], []], [[-1], [BIG + 1], [2**70], ["x"], 1, [1.5], [True]]),
    "allowed_token_ids": ([[0, BIG], None], [[], [-1], [2**70], ["x"]]),
    "logprob_token_ids": ([[0], [1] * 128, None], [[-1], [1] * 129, ["x"]]),
    "logit_bias": (
        [{}, {"5": 1}, {5: -100.0}, None],
        [{"5": 101}, {"5": -101}, {"-1": 0}, {"x": 0}, {"5": "x"}, {"5": math.nan}, [5], 5],
    ),
    "repetition_detection": (
        [{"max_pattern_size": 3, "min_count": 2}, None],
        [{"max_pattern_size": 3}, {"max_pattern_size": 3, "min_count": 1}, {"other": 1}],
    ),
    "structured_outputs": ([{"json": {"type": "object"}}, None], ["x", [], 1]),
}
ACCEPTED = [
    (field, value)
    for table in (NUMBERS, OTHERS)
    for field, (values, _) in table.items()
    for value in values
] + [(field, value) for field in BOOLEANS for value in (True, False, "true", "False", "1", 0)]
REFUSED = (
    [
        (field, value)
        for table in (NUMBERS, OTHERS)
        for field, (_, values) in table.items()
        for value in values
    ]
    + [(field, value) for field in NUMBERS for value in NEVER_A_NUMBER]
    + [(field, value) for field in BOOLEANS for value in ("yes", 2, None, [], 2**70, math.nan)]
)


def test_the_tables_here_know_every_field() -> None:
    assert NUMBERS.keys() | OTHERS.keys() | set(BOOLEANS) == set(Sampling.__struct_fields__)


@pytest.mark.parametrize(("field", "value"), ACCEPTED)
def test_a_value_within_bounds_is_taken(field: str, value: Any) -> None:
    sampling = make_sampling({field: value})
    assert isinstance(sampling, Sampling)


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_value_out_of_bounds_is_refused_by_the_fields_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_sampling({field: value})
    assert caught.value.param == field
    assert caught.value.message.startswith(field)


def test_strings_become_the_numbers_and_booleans_they_spell() -> None:
    sampling = make_sampling(
        {"max_tokens": "16", "temperature": "0", "ignore_eos": "true", "seed": "-3"}
    )
    assert sampling == Sampling(max_tokens=16, temperature=0.0, ignore_eos=True, seed=-3)


def test_an_unknown_name_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest, match="'best_of'") as caught:
        make_sampling({"best_of": 2})
    assert caught.value.param == "best_of"


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens") as caught:
        make_sampling({"min_tokens": 5, "max_tokens": 4})
    assert caught.value.param == "min_tokens"
    with pytest.raises(InvalidRequest) as caught:
        make_sampling({"n": 2, "temperature": 0})
    assert caught.value.param == "n"


def test_one_stop_string_and_a_list_of_one_are_the_same() -> None:
    assert make_sampling({"stop": "a"}).stop_strings == ("a",)
    assert make_sampling({"stop": ["a"]}).stop_strings == ("a",)
    assert make_sampling({}).stop_strings == ()
