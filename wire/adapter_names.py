"""Which LoRA adapter a request may ask for."""

from collections.abc import Sequence

from runtime.errors import InvalidRequest


def check_adapter(name: str | None, known: Sequence[str]) -> None:
    """Raise InvalidRequest for an adapter that is not among the `known` ones; None asks for none.

    The texts are those of Triton's vLLM backend (src/model.py).
    """
    if name is None or name in known:
        return
    if not known:
        raise InvalidRequest("LoRA feature is not enabled.", param="lora_name")
    raise InvalidRequest(
        f"LoRA {name} is not supported, we currently support {list(known)}", param="lora_name"
    )
