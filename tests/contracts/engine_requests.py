"""Requests that an engine must refuse; many would kill or hang vLLM if they reached it."""

from typing import Any

import numpy as np

PROMPT = list(range(500, 580))

# Sampling parameters of requests that have an answer; each with its own way to an end.
ANSWERED: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 12},
    "one token": {"max_tokens": 1},
    "seeded": {"temperature": 1.0, "seed": 5, "max_tokens": 12},
    "nucleus": {"temperature": 0.8, "top_p": 0.7, "top_k": 20, "seed": 9},
    "the end token": {"logit_bias": {0: -100.0}, "ignore_eos": False, "max_tokens": 40},
    "a stop token": {"allowed_token_ids": (700, 701), "stop_token_ids": (700, 701)},
    "not before min_tokens": {
        "allowed_token_ids": (700, 701),
        "stop_token_ids": (701,),
        "min_tokens": 3,
        "max_tokens": 6,
    },
    "penalties": {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "to the end of the context": {"max_tokens": None},
}

# Prompt (None: PROMPT), sampling parameters and request fields, and the field that is to blame.
BAD_REQUESTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "float ids": ([1.5, 2], {}, "input_ids"),
    "text ids": (["a"], {}, "input_ids"),
    "nested ids": ([[1, 2]], {}, "input_ids"),
    "huge ids": ([2**70], {}, "input_ids"),
    "float ids of numpy": (np.array([1.0, 2.0]), {}, "input_ids"),
    "no prompt": ([], {}, "input_ids"),
    "an id outside the vocabulary": ([1, 10**6], {}, "input_ids"),
    "a negative id": ([1, -1], {}, "input_ids"),
    "a seed over 64 bits": (None, {"seed": 2**70}, "seed"),
    "max_tokens over 64 bits": (None, {"max_tokens": 2**70}, "max_tokens"),
    "a float max_tokens": (None, {"max_tokens": 1.5}, "max_tokens"),
    "a temperature that is no number": (None, {"temperature": float("nan")}, "temperature"),
    "an infinite temperature": (None, {"temperature": float("inf")}, "temperature"),
    "top_p of 0": (None, {"top_p": 0.0}, "top_p"),
    "no choice at all": (None, {"n": 0}, "n"),
    "two greedy choices": (None, {"n": 2}, "n"),
    "min above max": (None, {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    "too many logprobs": (None, {"logprobs": 21}, "logprobs"),
    "all logprobs": (None, {"logprobs": -1}, "logprobs"),
    "too many prompt logprobs": (None, {"prompt_logprobs": 21}, "prompt_logprobs"),
    "a stop id outside": (None, {"stop_token_ids": (10**6,)}, "stop_token_ids"),
    "no allowed id": (None, {"allowed_token_ids": ()}, "allowed_token_ids"),
    "an allowed id outside": (None, {"allowed_token_ids": (10**6,)}, "allowed_token_ids"),
    "a biased id outside": (None, {"logit_bias": {10**6: 1.0}}, "logit_bias"),
    "a scored id outside": (None, {"logprob_token_ids": (10**6,)}, "logprob_token_ids"),
    "an unknown adapter": (None, {"lora_name": "/nonexistent"}, "lora_name"),
    "a rank there is not": (None, {"data_parallel_rank": 7}, "data_parallel_rank"),
    "a float priority": (None, {"priority": 1.5}, "priority"),
    "a huge priority": (None, {"priority": 2**70}, "priority"),
    "a salt that is no text": (None, {"cache_salt": 5}, "cache_salt"),
    "an id that is no text": (None, {"request_id": 5}, "request_id"),
}

# As sampling parameter `structured_outputs`.
BAD_STRUCTURES: dict[str, Any] = {
    "nothing": {},
    "two constraints": {"regex": "a", "json_object": True},
    "an unknown field": {"guided": "x"},
    "a wrong type": {"choice": "yes"},
    "an empty choice": {"choice": []},
    "json_object false": {"json_object": False},
    "an option alone": {"whitespace_pattern": " "},
    "too large": {"regex": "a" * 100_000},
    "broken JSON": {"json": "{"},
    "a schema of the wrong kind": {"json": {"type": "nonsense"}},
    "a broken regex": {"regex": "("},
    "a broken grammar": {"grammar": "root ::= (("},
    "a broken tag": {"structural_tag": "{}"},
    "an endless schema": {"json": {"$ref": "#"}},
}
