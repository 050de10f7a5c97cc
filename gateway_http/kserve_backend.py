"""A Backend in another process: this gateway as a KServe v2 client of a text LLM server.

One ModelStreamInfer per request, so that cancelling a request is cancelling its rpc.
"""

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from runtime.access import Limits, Unlimited, counted
from runtime.errors import (
    INTERNAL_TEXT,
    DeadlineExceeded,
    InternalError,
    ServingError,
    Unauthenticated,
    WorkerLost,
)
from runtime.grpc_client import RpcChannel
from wire import inference_pb2 as pb
from wire.cards import ModelCard
from wire.generate import GenerateDelta, GenerateRequest
from wire.pool import KSERVE
from wire.text_request import OutputSelection, encode_text_request
from wire.text_response import decode_text_response

log = logging.getLogger(__name__)

_DESCRIBE_S = 5.0
_OUTPUTS = ("text_output", "finish_reason", "output_ids", "num_input_tokens")


class KServeBackend:
    """Asks the server behind `channel`, which the caller closes.

    `limits` holds clients to what their keys allow. `passes_keys_on` says whose key the server
    refuses, if it does: the client's, who is told, or this gateway's, which is the operator's.
    """

    def __init__(
        self,
        channel: RpcChannel,
        *,
        limits: Limits | None = None,
        passes_keys_on: bool = False,
    ) -> None:
        self._channel = channel
        self._limits = limits or Unlimited()
        self._passes_keys_on = passes_keys_on

    async def models(self) -> list[ModelCard]:
        """The models in the server's index. Only name and context length are known of them."""
        index = await self._describe("RepositoryIndex", pb.RepositoryIndexRequest())
        # A model that is still loading has no configuration to ask for.
        names = dict.fromkeys(it.name for it in index.models if it.state != "LOADING")
        return [await self._card(name) for name in names]

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

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        """Run one request; closing the iterator cancels it."""
        outputs = _OUTPUTS if request.sampling.logprobs is None else (*_OUTPUTS, "logprobs")
        message = encode_text_request(request, OutputSelection(outputs=outputs))
        timeout_s = None
        if request.deadline_s is not None:
            timeout_s = request.deadline_s - time.monotonic()
            if timeout_s <= 0:
                raise DeadlineExceeded("the deadline passed before the request began")
        with counted(self._limits, request.principal), self._asking():
            stream = self._channel.stream(KSERVE, "ModelStreamInfer", timeout_s=timeout_s)
            async with stream:
                stream.send(message)
                stream.half_close()
                async for response in stream:
                    delta = decode_text_response(response)
                    yield delta
                    if delta.final:
                        return
        raise WorkerLost("the server ended the request without its final response")

    async def _card(self, name: str) -> ModelCard:
        answer = await self._describe("ModelConfig", pb.ModelConfigRequest(name=name))
        length = answer.config.parameters["context_length"].string_value
        return ModelCard(
            name=name,
            path="",
            context_length=int(length) if length.isdigit() else 0,
            vocab_size=0,
            block_size=0,
        )

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
