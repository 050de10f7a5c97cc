"""A Backend in another process: this gateway as a KServe v2 client of a text LLM server.

One ModelStreamInfer per request, so that cancelling a request is cancelling its rpc.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from functools import partial
from typing import Any

import msgspec
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from runtime.access import Limits, Unlimited, counted
from runtime.errors import (
    INTERNAL_TEXT,
    Cancelled,
    DeadlineExceeded,
    Draining,
    InternalError,
    ServingError,
    Unauthenticated,
    WorkerLost,
)
from runtime.rpc_client import RpcCaller, RpcStream
from runtime.turns import Steps, in_turns
from wire import inference_pb2 as pb
from wire.cards import ModelCard
from wire.generate import GenerateDelta, GenerateRequest, OnText, Tokenized
from wire.items import PART_ITEMS
from wire.pool import KSERVE
from wire.text_request import OutputSelection, encode_text_request
from wire.text_response import decode_text_response
from wire.text_tools import (
    decode_detokenized,
    decode_tokenized,
    encode_detokenize,
    encode_tokenize,
)

log = logging.getLogger(__name__)

_DESCRIBE_S = 5.0
_OUTPUTS = ("text_output", "finish_reason", "output_ids", "num_input_tokens")
_LOGPROBS = ("logprobs", "cumulative_logprob")
# Cancelled is what gRPC's own servers answer to a call that comes while they stop.
_PATIENT = AsyncRetrying(
    retry=retry_if_exception_type((Cancelled, Draining, WorkerLost)),
    stop=stop_after_attempt(3),
    wait=wait_random_exponential(multiplier=0.1, max=1.0),
    reraise=True,
)


class KServeBackend:
    """Asks the server behind `channel`, which the caller closes.

    `limits` holds clients to what their keys allow. `passes_keys_on` says whose key the server
    refuses, if it does: the client's, who is told, or this gateway's, which is the operator's.
    """

    def __init__(
        self,
        channel: RpcCaller,
        *,
        limits: Limits | None = None,
        passes_keys_on: bool = False,
    ) -> None:
        self._channel = channel
        self._limits = limits or Unlimited()
        self._passes_keys_on = passes_keys_on

    async def models(self) -> list[ModelCard]:
        """The models in the server's index: their names and what sizes are known, else 0."""
        index = await self._describe("RepositoryIndex", pb.RepositoryIndexRequest())
        # A model that is still loading has no configuration to ask for.
        names = dict.fromkeys(it.name for it in index.models if it.state != "LOADING")
        return [await self.card(name) for name in names]

    async def card(self, name: str) -> ModelCard:
        """One model, by name or alias; raises ModelNotFound."""
        answer = await self._describe("ModelConfig", pb.ModelConfigRequest(name=name))
        parameters = answer.config.parameters

        def size(key: str) -> int:
            text = parameters[key].string_value
            return int(text) if text.isdigit() else 0

        return ModelCard(
            name=name,
            path="",
            context_length=size("context_length"),
            vocab_size=size("vocab_size"),
            block_size=0,
            adapters=_names(parameters["adapters"].string_value),
        )

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether the server, or one of its models, says that it is ready; false without answer."""
        try:
            if model is None:
                answer = await self._describe("ServerReady", pb.ServerReadyRequest())
            else:
                answer = await self._describe("ModelReady", pb.ModelReadyRequest(name=model))
        except Unauthenticated:
            # Who asks after readiness has no key to pass on; health needs none.
            return self._passes_keys_on and await self._channel.is_serving(timeout_s=_DESCRIBE_S)
        except ServingError:
            return False
        return bool(answer.ready)

    async def generate(
        self, request: GenerateRequest, on_text: OnText | None = None
    ) -> AsyncIterator[GenerateDelta]:
        """Run one request; closing the iterator cancels it.

        Until the first delta a request that finds its server stopping is sent again: another one
        may answer at the same address.
        """
        selection = OutputSelection(outputs=_outputs_of(request))
        write = partial(encode_text_request, request, selection)
        message = await in_turns(_written(request, write))
        stream: RpcStream
        delta: GenerateDelta
        with counted(self._limits, request.principal), self._asking():
            stream, delta = await _PATIENT(self._begin, request, message)
            async with aclosing(stream):
                yield delta
                if delta.final:
                    return
                async for response in stream:
                    delta = decode_text_response(response)
                    yield delta
                    if delta.final:
                        return
        raise WorkerLost("the server ended the request without its final response")

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool = False) -> Tokenized:
        """Encode a request's prompt."""
        write = partial(encode_tokenize, request, with_strings=with_strings)
        message = await in_turns(_written(request, write))
        return decode_tokenized(await self._describe("ModelInfer", message))

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of some ids."""
        message = encode_detokenize(model, token_ids)
        return decode_detokenized(await self._describe("ModelInfer", message))

    async def _begin(
        self, request: GenerateRequest, message: Any
    ) -> tuple[RpcStream, GenerateDelta]:
        """Return a stream, which the caller closes, and its first delta."""
        timeout_s = None
        if request.deadline_s is not None:
            timeout_s = request.deadline_s - time.monotonic()
            if timeout_s <= 0:
                raise DeadlineExceeded("the deadline passed before the request began")
        trace = {"traceparent": request.traceparent} if request.traceparent else None
        async with AsyncExitStack() as resources:
            stream = await resources.enter_async_context(
                self._channel.stream(
                    KSERVE, "ModelStreamInfer", timeout_s=timeout_s, metadata=trace
                )
            )
            stream.send(message)
            stream.half_close()
            async for response in stream:
                delta = decode_text_response(response)
                resources.pop_all()
                return stream, delta
        raise WorkerLost("the server ended the request without an answer")

    async def _describe(self, method: str, message: object) -> Any:
        with self._asking():
            return await self._channel.unary(KSERVE, method, message, timeout_s=_DESCRIBE_S)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Keep a refusal of this gateway's own key from clients: it is not about theirs."""
        try:
            yield
        except Unauthenticated as error:
            if self._passes_keys_on:
                raise
            log.error("the target refuses this gateway's key: %s", error.message)  # noqa: TRY400
            raise InternalError(INTERNAL_TEXT) from None


def _written(
    request: GenerateRequest, write: Callable[[], pb.ModelInferRequest]
) -> Steps[pb.ModelInferRequest]:
    """Write a request's message; that of a long conversation is a long piece."""
    if len(request.messages or ()) > PART_ITEMS:
        yield
    return write()


def _outputs_of(request: GenerateRequest) -> tuple[str, ...]:
    if request.pooling is not None:
        return ("embedding", "num_input_tokens")
    return (
        *_OUTPUTS,
        *(_LOGPROBS if request.sampling.logprobs is not None else ()),
        *(("prompt_logprobs",) if request.sampling.prompt_logprobs is not None else ()),
        *(("reasoning_output",) if request.separate_reasoning else ()),
        *(("tool_calls",) if request.separate_tool_calls else ()),
    )


def _names(text: str) -> tuple[str, ...]:
    """The names in a parameter of ModelConfig; none where a server says nothing of them."""
    try:
        return msgspec.json.decode(text or "[]", type=tuple[str, ...])
    except msgspec.MsgspecError:
        return ()
