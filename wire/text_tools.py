"""What a text server does without a worker: prompts to tokens, and tokens to text.

Carried by ModelInfer with the request parameter `penstock_operation`. "tokenize" takes any prompt
of the text contract and answers with output_ids INT32 [k] and the parameter `context_length`;
"tokenize_with_strings" adds token_strings BYTES [k]. "detokenize" takes input_ids and answers with
text_output BYTES [1].
"""

from array import array
from collections.abc import Sequence

from runtime.errors import InvalidRequest, Unsupported
from runtime.turns import Steps
from wire.generate import GenerateRequest, Tokenized
from wire.inference_pb2 import ModelInferRequest, ModelInferResponse
from wire.parameters import int_parameter, plain_parameter, set_parameter
from wire.tensors import add_input, add_output, decode_inputs_by_parts, decode_outputs
from wire.text_request import OutputSelection, encode_text_request
from wire.token_contract import read_token_ids

OPERATION = "penstock_operation"
TOKENIZE, WITH_STRINGS, DETOKENIZE = "tokenize", "tokenize_with_strings", "detokenize"
_OPERATIONS = (TOKENIZE, WITH_STRINGS, DETOKENIZE)
_CONTEXT = "context_length"


def operation_of(message: ModelInferRequest) -> str | None:
    """What is asked for instead of a generation, None for one; raises InvalidRequest."""
    name = plain_parameter(message.parameters, OPERATION)
    if name is None:
        return None
    if name in _OPERATIONS:
        return str(name)
    raise InvalidRequest(
        f"{OPERATION}: expected one of {', '.join(_OPERATIONS)}, got {name!r}", param=OPERATION
    )


def encode_tokenize(request: GenerateRequest, *, with_strings: bool) -> ModelInferRequest:
    """Ask for the tokens of a request's prompt."""
    message = encode_text_request(request, OutputSelection())
    set_parameter(message.parameters, OPERATION, WITH_STRINGS if with_strings else TOKENIZE)
    return message


def encode_tokenized(message: ModelInferRequest, found: Tokenized) -> ModelInferResponse:
    """Answer with the tokens."""
    response = ModelInferResponse(model_name=message.model_name, model_version="1", id=message.id)
    ids, strings = found.token_ids, found.token_strings
    add_output(response, "output_ids", "INT32", (len(ids),), list(ids), typed=False)
    if strings is not None:
        values = [it.encode("utf-8", "surrogatepass") for it in strings]
        add_output(response, "token_strings", "BYTES", (len(values),), values, typed=False)
    set_parameter(response.parameters, _CONTEXT, found.context_length)
    return response


def decode_tokenized(response: ModelInferResponse) -> Tokenized:
    """Read that answer; raises Unsupported for one of a server that has generated instead."""
    context = int_parameter(response.parameters, _CONTEXT)
    tensors = decode_outputs(response)
    if context is None or "output_ids" not in tensors:
        raise Unsupported("tokenize: the server behind this gateway does not offer it")
    strings = tensors.get("token_strings")
    return Tokenized(
        token_ids=array("i", tensors["output_ids"].values.astype("<i4").tobytes()),
        context_length=context,
        token_strings=None
        if strings is None
        else [it.decode(errors="replace") for it in strings.values.ravel().tolist()],
    )


def encode_detokenize(model: str, token_ids: Sequence[int]) -> ModelInferRequest:
    """Ask for the text of some ids."""
    message = ModelInferRequest(model_name=model)
    add_input(message, "input_ids", "INT32", (len(token_ids),), token_ids, typed=False)
    set_parameter(message.parameters, OPERATION, DETOKENIZE)
    return message


def decode_detokenize(message: ModelInferRequest) -> "Steps[array[int]]":
    """The ids in that request; raises InvalidRequest."""
    tensors = yield from decode_inputs_by_parts(message)
    if "input_ids" not in tensors:
        raise InvalidRequest("input_ids: missing", param="input_ids")
    return read_token_ids(tensors["input_ids"])


def encode_detokenized(message: ModelInferRequest, text: str) -> ModelInferResponse:
    """Answer with the text."""
    response = ModelInferResponse(model_name=message.model_name, model_version="1", id=message.id)
    add_output(response, "text_output", "BYTES", (1,), [text.encode()], typed=False)
    set_parameter(response.parameters, OPERATION, DETOKENIZE)
    return response


def decode_detokenized(response: ModelInferResponse) -> str:
    """Read that answer; raises Unsupported for one of a server that has generated instead."""
    tensors = decode_outputs(response)
    if OPERATION not in response.parameters or "text_output" not in tensors:
        raise Unsupported("detokenize: the server behind this gateway does not offer it")
    text: str = tensors["text_output"].values.ravel().tolist()[0].decode(errors="replace")
    return text
