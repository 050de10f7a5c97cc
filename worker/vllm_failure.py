"""Why vLLM did not start, as one message that says what to do about it."""

import re
import signal

from runtime.errors import EngineFailed, InvalidConfig, ServingError
from worker.vllm_logs import first_cause

_LESS_MEMORY = (
    "what helps: a smaller --kv-cache-memory-bytes or --max-model-len behind --, on a GPU another "
    "--gpu-memory-utilization, or a quantised model"
)
_MEMORY = re.compile(r"memory", re.IGNORECASE)
_CHECKPOINT = re.compile(r"weights|checkpoint", re.IGNORECASE)
# vLLM's text when one of its processes ends early, with its exit code; a signal's is negative.
_SIGNAL = re.compile(r"Failed core proc\(s\): \{.*?: -(\d+)")


def refused(error: Exception, cause: str | None) -> ServingError:
    """Return the error for a configuration that vLLM does not take."""
    text = first_cause(error)
    if cause is not None and "check the logs" in text:
        text = f"{text.partition(' Please check')[0]} ({cause})"
    # It goes on with all that there are.
    text = text.partition(" Supported architectures:")[0]
    return InvalidConfig(f"vLLM refuses the model or its arguments: {text}", param="model")


def failed_start(error: Exception, cause: str | None) -> ServingError:
    """Return the error for an engine that could not start; `cause` is what its process said.

    InvalidConfig for what a user has to change, EngineFailed for the rest.
    """
    text = cause or first_cause(error)
    killed = None if cause else _SIGNAL.search(text)
    if killed is not None:
        name = signal.Signals(int(killed[1])).name
        remedy = f"; if memory ran out, {_LESS_MEMORY}" if name == "SIGKILL" else ""
        return EngineFailed(f"vLLM could not start: its process was ended by {name}{remedy}")
    if _MEMORY.search(text):
        return InvalidConfig(f"vLLM could not start: {text} ({_LESS_MEMORY})", param="engine_args")
    if _CHECKPOINT.search(text):
        return InvalidConfig(f"vLLM cannot load the model: {text}", param="model")
    return EngineFailed(f"vLLM could not start: {text}")
