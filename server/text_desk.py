"""Texts and token ids of the fleet's models; what takes long is done in a thread."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from runtime.turns import own_turn
from server.fleet import Fleet
from server.text.codec import EncodedPrompt, TextCodec
from wire.generate import GenerateRequest, Tokenized

_STRINGS_A_TURN = 2048  # 1 ms when each is made for the first time


class TextDesk:
    """Encodes and decodes by the models' codecs."""

    def __init__(self, fleet: Fleet, threads: Executor | None) -> None:
        self._fleet = fleet
        self._threads = threads

    def encoding(
        self, codec: TextCodec, request: GenerateRequest
    ) -> "asyncio.Future[EncodedPrompt]":
        """Encode a prompt in a thread."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, codec.encode_request, request)

    async def encode(self, codec: TextCodec, request: GenerateRequest) -> EncodedPrompt:
        """Encode a prompt. Raises what TextCodec.encode_request does."""
        if codec.is_long(request):
            return await self.encoding(codec, request)
        return codec.encode_request(request)

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool) -> Tokenized:
        """The ids of a request's prompt."""
        model = self._fleet.model(request.model)
        ids = (await self.encode(model.codec, request)).token_ids
        strings: list[str] = []
        for at in range(0, len(ids) if with_strings else 0, _STRINGS_A_TURN):
            async with own_turn():
                strings += model.codec.token_strings(ids[at : at + _STRINGS_A_TURN])
        return Tokenized(
            token_ids=ids,
            context_length=model.card.context_length,
            token_strings=strings if with_strings else None,
        )

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        codec = self._fleet.model(model).codec
        if not codec.has_long_text(token_ids):
            return codec.full_text_of(token_ids)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, codec.full_text_of, token_ids)
