"""Metadata and configuration, as load tools read them."""

import pytest

from wire import inference_pb2 as pb
from wire.cards import ModelCard
from wire.sampling_inputs import SAMPLING_TENSORS
from wire.text_inputs import OUTPUTS, TEXT_INPUTS
from wire.text_schema import model_config, model_metadata, token_config, token_metadata

CARD = ModelCard(name="m", path="x", context_length=4096, vocab_size=10, block_size=16)
BOTH = [(model_metadata, model_config), (token_metadata, token_config)]


@pytest.mark.parametrize(("metadata", "config"), BOTH)
def test_metadata_and_config_name_the_same_tensors(metadata, config) -> None:
    described = metadata(CARD)
    configured = config(CARD).config
    assert [(it.name, list(it.shape)) for it in described.inputs] == [
        (it.name, list(it.dims)) for it in configured.input
    ]
    assert [(it.name, list(it.shape)) for it in described.outputs] == [
        (it.name, list(it.dims)) for it in configured.output
    ]
    for tensor, entry in zip(described.inputs, configured.input, strict=True):
        name = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
        assert entry.data_type == getattr(pb, name)


@pytest.mark.parametrize(
    ("config", "required"), [(model_config, "text_input"), (token_config, "input_ids")]
)
def test_only_the_prompt_is_required_and_the_model_is_decoupled(config, required: str) -> None:
    configured = config(CARD).config
    assert [it.name for it in configured.input if not it.optional] == [required]
    assert configured.model_transaction_policy.decoupled
    assert configured.max_batch_size == 0
    assert configured.parameters["context_length"].string_value == "4096"
    assert configured.parameters["vocab_size"].string_value == "10"


def test_the_text_metadata_lists_all_that_the_decoder_takes() -> None:
    described = model_metadata(CARD)
    assert {it.name for it in described.inputs} == set(TEXT_INPUTS)
    assert {it.name for it in described.outputs} == set(OUTPUTS)
    assert (described.name, described.versions[:]) == ("m", ["1"])
    datatypes = {it.name: it.datatype for it in described.inputs}
    assert datatypes["text_input"] == datatypes["sampling_parameters"] == "BYTES"
    assert datatypes["max_tokens"] == "INT32"
    assert datatypes["temperature"] == "FP32"
    assert datatypes["stream"] == "BOOL"


def test_the_token_metadata_lists_ids_and_sampling() -> None:
    described = token_metadata(CARD)
    names = {it.name for it in described.inputs}
    assert names == {"input_ids", "sampling_parameters", *SAMPLING_TENSORS}
    assert described.outputs[0].name == "output_ids"
    assert described.outputs[0].datatype == "INT32"
