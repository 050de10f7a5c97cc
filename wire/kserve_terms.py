"""What KServe's two fronts, gRPC and HTTP, say alike about a request that cannot be taken."""

from runtime.errors import ModelNotFound, ServingError
from wire.text_schema import MODEL_VERSION

INPUT_NAMES = {"prompt": "text_input", "prompt_token_ids": "input_ids", "messages": "messages"}
"""Field of a GenerateRequest to the input tensor that it comes from."""


def check_version(name: str, asked: str) -> None:
    """Raise ModelNotFound unless `asked` is empty or the one version there is."""
    if asked not in ("", MODEL_VERSION):
        raise ModelNotFound(f"model {name!r} has no version {asked!r}", param="model_version")


def in_kserve_terms(error: ServingError) -> ServingError:
    """Return the error with the name that the field has among this contract's input tensors."""
    name = INPUT_NAMES.get(error.param or "")
    if name is None or name in error.message:
        return error
    return type(error)(f"{name}: {error.message}", param=name)
