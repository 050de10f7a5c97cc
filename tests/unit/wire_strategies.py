"""Hypothesis strategies for what travels."""

from hypothesis import strategies as st

from wire.sampling import Sampling

WORD = st.text(min_size=1, max_size=6)
TOKEN_ID = st.integers(0, 2**31 - 1)
SAMPLING = st.builds(
    Sampling,
    n=st.just(1),
    max_tokens=st.none() | st.integers(100, 2**31 - 1),
    min_tokens=st.integers(0, 100),
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(-1, 2**31 - 1),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.01, 2),
    stop=st.lists(WORD, max_size=3).map(tuple),
    include_stop_str_in_output=st.booleans(),
    stop_token_ids=st.lists(TOKEN_ID, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    bad_words=st.lists(WORD, max_size=3).map(tuple),
    logit_bias=st.none() | st.dictionaries(TOKEN_ID, st.floats(-100, 100), max_size=3),
    allowed_token_ids=st.none() | st.lists(TOKEN_ID, min_size=1, max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    logprob_token_ids=st.none() | st.lists(TOKEN_ID, max_size=3).map(tuple),
    skip_special_tokens=st.booleans(),
    spaces_between_special_tokens=st.booleans(),
    structured_outputs=st.none() | st.dictionaries(WORD, st.integers(0, 9) | WORD, max_size=2),
)
"""Every field; `n` above 1 needs a temperature and is tested by hand."""
