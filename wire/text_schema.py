"""What a model says of itself: metadata and configuration of the text and the token contract.

Load tools read them: perf_analyzer needs every config tensor in the metadata, every input it sends
in both, and one prompt input that is not optional.
"""

from collections.abc import Mapping

import msgspec

from wire import inference_pb2 as pb
from wire.cards import ModelCard
from wire.sampling_inputs import INTS, JSON, JSON_INPUT, SAMPLING_TENSORS, Kind
from wire.text_inputs import OUTPUTS, TEXT_INPUTS

MODEL_VERSION = "1"
_PLATFORM = "vllm"
_TOKEN_INPUTS: dict[str, Kind] = {"input_ids": INTS, JSON_INPUT: JSON} | SAMPLING_TENSORS
_TOKEN_OUTPUTS = {
    "output_ids": "INT32",
    "finish_reason": "BYTES",
    "logprobs": "BYTES",
    "prompt_logprobs": "BYTES",
}
_TOKEN_OUTPUT_DIMS = {"output_ids": (1, -1)}
_TEXT_OUTPUT_DIMS = {"num_input_tokens": (1,), "output_log_probs": (-1, -1)}
_Dims = Mapping[str, tuple[int, ...]]


def model_metadata(card: ModelCard) -> pb.ModelMetadataResponse:
    """ModelMetadata of the text contract."""
    return _metadata(card, TEXT_INPUTS, OUTPUTS, _TEXT_OUTPUT_DIMS)


def model_config(card: ModelCard) -> pb.ModelConfigResponse:
    """ModelConfig of the text contract: decoupled; only `text_input` is not optional."""
    return _config(card, TEXT_INPUTS, OUTPUTS, _TEXT_OUTPUT_DIMS, required="text_input")


def token_metadata(card: ModelCard) -> pb.ModelMetadataResponse:
    """ModelMetadata of the token contract."""
    return _metadata(card, _TOKEN_INPUTS, _TOKEN_OUTPUTS, _TOKEN_OUTPUT_DIMS)


def token_config(card: ModelCard) -> pb.ModelConfigResponse:
    """ModelConfig of the token contract: decoupled; only `input_ids` is not optional."""
    return _config(card, _TOKEN_INPUTS, _TOKEN_OUTPUTS, _TOKEN_OUTPUT_DIMS, required="input_ids")


def _metadata(
    card: ModelCard, inputs: Mapping[str, Kind], outputs: Mapping[str, str], dims: _Dims
) -> pb.ModelMetadataResponse:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=card.name,
        versions=[MODEL_VERSION],
        platform=_PLATFORM,
        inputs=[
            tensor(name=name, datatype=kind.datatype, shape=_input_dims(kind))
            for name, kind in inputs.items()
        ],
        outputs=[
            tensor(name=name, datatype=datatype, shape=dims.get(name, (-1,)))
            for name, datatype in outputs.items()
        ],
    )


def _config(
    card: ModelCard,
    inputs: Mapping[str, Kind],
    outputs: Mapping[str, str],
    dims: _Dims,
    *,
    required: str,
) -> pb.ModelConfigResponse:
    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=card.name,
            platform=_PLATFORM,
            backend=_PLATFORM,
            max_batch_size=0,
            input=[
                pb.ModelInput(
                    name=name,
                    data_type=_data_type(kind.datatype),
                    dims=_input_dims(kind),
                    optional=name != required,
                )
                for name, kind in inputs.items()
            ],
            output=[
                pb.ModelOutput(
                    name=name, data_type=_data_type(datatype), dims=dims.get(name, (-1,))
                )
                for name, datatype in outputs.items()
            ],
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
            parameters={
                name: pb.ModelParameter(string_value=str(getattr(card, name)))
                for name in ("context_length", "vocab_size")
            }
            | {
                "adapters": pb.ModelParameter(
                    string_value=msgspec.json.encode(card.adapters).decode()
                )
            },
        )
    )


def _input_dims(kind: Kind) -> tuple[int, ...]:
    return (1,) if kind.single else (-1,)


def _data_type(datatype: str) -> "pb.DataType":
    # The enum says STRING where tensors say BYTES.
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    number: pb.DataType = getattr(pb, name)
    return number
