"""TensorRT-LLM's guided decoding inputs: what the answer must look like.

Types and their guides: `guided_decoding_guide_type` and `guided_decoding_guide` of
tensorrt_llm/inflight_batcher_llm/config.pbtxt in triton-inference-server/tensorrtllm_backend.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.errors import InvalidRequest
from wire.sampling import Sampling
from wire.sampling_inputs import TEXT, Kind, tensor_value
from wire.tensors import Tensor

GUIDE = "guided_decoding_guide"
GUIDE_TYPE = "guided_decoding_guide_type"
GUIDE_INPUTS: dict[str, Kind] = {GUIDE_TYPE: TEXT, GUIDE: TEXT}
_ANY_JSON = "json"
_FIELDS = {
    "json_schema": "json",
    "regex": "regex",
    "ebnf_grammar": "grammar",
    "structural_tag": "structural_tag",
}


def with_guide(sampling: Sampling, tensors: Mapping[str, Tensor]) -> Sampling:
    """Return `sampling` with the guide of the inputs as its `structured_outputs`, if there is one.

    Raises InvalidRequest naming the input that is wrong.
    """
    if not GUIDE_INPUTS.keys() & tensors.keys():
        return sampling
    if sampling.structured_outputs is not None:
        raise InvalidRequest(f"{GUIDE_TYPE}: given beside structured_outputs", param=GUIDE_TYPE)
    return msgspec.structs.replace(sampling, structured_outputs=_structure(tensors))


def _structure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if GUIDE_TYPE not in tensors:
        raise InvalidRequest(f"{GUIDE_TYPE}: missing beside {GUIDE}", param=GUIDE_TYPE)
    kind = tensor_value(tensors[GUIDE_TYPE], TEXT)
    if kind == _ANY_JSON:
        return {"json_object": True}
    if kind not in _FIELDS:
        known = ", ".join((_ANY_JSON, *_FIELDS))
        raise InvalidRequest(f"{GUIDE_TYPE}: {kind!r} is none of {known}", param=GUIDE_TYPE)
    if GUIDE not in tensors:
        raise InvalidRequest(f"{GUIDE}: missing for {kind}", param=GUIDE)
    return {_FIELDS[kind]: tensor_value(tensors[GUIDE], TEXT)}
