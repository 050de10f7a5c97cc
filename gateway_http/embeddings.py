"""OpenAI's embeddings, and what follows from them: vLLM's score, and Jina's and Cohere's rerank."""

import base64
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.api_document import describe_endpoint
from gateway_http.bodies import read_body, read_with_ids
from gateway_http.completions import read_prompts
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.errors import JSON_TYPE, error_json
from gateway_http.generation import GenerationResponse, as_body
from gateway_http.origin import Origin, origin_of
from runtime.errors import InternalError, InvalidRequest, ServingError
from wire.generate import Backend, GenerateDelta, GenerateRequest
from wire.pooling import Pooling
from wire.sampling import Sampling
from wire.vectors import vector

_Truncation = Annotated[int, Meta(ge=-1)] | None
_Document = str | dict[str, Any]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings. `input`: text, token ids, or a list of either."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    truncate_prompt_tokens: _Truncation = None
    add_special_tokens: bool | None = None
    priority: int | None = None


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/score: how alike each `text_2` is to its `text_1`, or all of them to the one."""

    model: Annotated[str, Meta(min_length=1)]
    text_1: str | Annotated[list[str], Meta(min_length=1)]
    text_2: str | Annotated[list[str], Meta(min_length=1)]
    truncate_prompt_tokens: _Truncation = None


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/rerank: documents in the order of their likeness to a query."""

    model: Annotated[str, Meta(min_length=1)]
    query: str
    documents: Annotated[list[_Document], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: _Truncation = None


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One input's vector, as numbers or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors, in the order of the inputs."""

    id: str
    model: str
    created: int
    data: list[Embedding]
    usage: EmbeddingUsage
    object: str = "list"


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How alike two texts are: the cosine of the angle between their vectors."""

    index: int
    score: float
    object: str = "score"


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The scores, in the order of the pairs."""

    id: str
    model: str
    created: int
    data: list[Score]
    usage: EmbeddingUsage
    object: str = "list"


class RerankResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One document: its place in the request, and how alike it is to the query."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The documents, the most alike first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


class _Vectors:
    """Collects the vectors of some prompts (a Body); subclasses say what is made of them."""

    def __init__(self, model: str, count: int) -> None:
        self.common = {"id": f"embd-{uuid.uuid4().hex}", "model": model}
        self.created = int(datetime.now(UTC).timestamp())
        self.vectors: list[bytes | None] = [None] * count
        self._tokens = 0
        self._open = count

    @property
    def complete(self) -> bool:
        """Whether every prompt has had its final delta."""
        return not self._open

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer."""
        return [JSON_TYPE]

    @property
    def usage(self) -> EmbeddingUsage:
        """Token counts of all prompts."""
        return EmbeddingUsage(self._tokens, self._tokens)

    def add(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of prompt number `prompt`."""
        for choice in delta.choices:
            if choice.embedding is not None:
                self.vectors[prompt] = choice.embedding
        if delta.usage is not None:
            self._tokens += delta.usage.prompt_tokens
            self._open -= 1

    def error_body(self, error: ServingError) -> bytes:
        """The answer when there is none."""
        return error_json(error)

    def encode(self) -> bytes:
        """The answer. Raises InternalError when a vector is missing."""
        if None in self.vectors:
            raise InternalError("the backend ended a request for an embedding without one")
        return msgspec.json.encode(self.answer([it for it in self.vectors if it is not None]))

    def answer(self, vectors: Sequence[bytes]) -> msgspec.Struct:
        """What is made of the vectors."""
        raise NotImplementedError


class _Embeddings(_Vectors):
    def __init__(self, body: EmbeddingRequest, count: int) -> None:
        super().__init__(body.model, count)
        self._as_text = body.encoding_format == "base64"

    def answer(self, vectors: Sequence[bytes]) -> EmbeddingAnswer:
        """The vectors themselves."""
        shown = [
            base64.b64encode(it).decode() if self._as_text else vector(it).tolist()
            for it in vectors
        ]
        data = [Embedding(index=index, embedding=it) for index, it in enumerate(shown)]
        return EmbeddingAnswer(**self.common, created=self.created, data=data, usage=self.usage)


class _Scores(_Vectors):
    def __init__(self, body: ScoreRequest, first: int, second: int) -> None:
        super().__init__(body.model, first + second)
        self._first = first

    def answer(self, vectors: Sequence[bytes]) -> ScoreAnswer:
        """The cosine of each pair."""
        first, second = vectors[: self._first], vectors[self._first :]
        lefts = [*first] * len(second) if len(first) == 1 else first
        data = [
            Score(index=index, score=_cosine(left, right))
            for index, (left, right) in enumerate(zip(lefts, second, strict=True))
        ]
        return ScoreAnswer(**self.common, created=self.created, data=data, usage=self.usage)


class _Ranking(_Vectors):
    def __init__(self, body: RerankRequest) -> None:
        super().__init__(body.model, 1 + len(body.documents))
        self._body = body

    def answer(self, vectors: Sequence[bytes]) -> RerankAnswer:
        """The documents in order."""
        body = self._body
        scores = [_cosine(vectors[0], it) for it in vectors[1:]]
        order = sorted(range(len(scores)), key=lambda it: -scores[it])
        shown = body.return_documents is not False
        results = [
            RerankResult(
                index=index,
                relevance_score=scores[index],
                document={"text": document_text(index, body.documents[index])} if shown else None,
            )
            for index in order[: body.top_n or None]
        ]
        return RerankAnswer(**self.common, results=results, usage=self.usage)


def _cosine(left: bytes, right: bytes) -> float:
    # Vectors have unit length.
    return float(vector(left) @ vector(right))


def document_text(place: int, document: _Document) -> str:
    """A document's text. Raises InvalidRequest naming it when it has none."""
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        at = f"documents[{place}].text"
        raise InvalidRequest(f"{at}: expected text", param=at)
    return text


def _requests(
    prompts: Sequence[str | Sequence[int]],
    model: str,
    origin: Origin,
    *,
    param: str,
    most: int,
    **fields: Any,
) -> list[GenerateRequest]:
    if len(prompts) > most:
        raise InvalidRequest(f"{param}: more than {most}", param=param)
    return [
        GenerateRequest(
            request_id=f"{origin.request_id}-{place}",
            model=model,
            sampling=Sampling(),
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            stream=False,
            **{"pooling": Pooling(), **fields},
            **origin.fields(),
        )
        for place, prompt in enumerate(prompts)
    ]


def add_embeddings(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add the endpoints."""
    most = config.max_embedding_inputs

    async def embeddings(request: Request) -> Response:
        origin = origin_of(request, "embd", config.request_timeout_s)
        body, ids = await read_with_ids(request, config, EmbeddingRequest, "input", lists=most)
        asked = _requests(
            read_prompts(body.input, "input") if ids is None else ids,
            body.model,
            origin,
            param="input",
            most=most,
            pooling=Pooling(dimensions=body.dimensions),
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            add_special_tokens=body.add_special_tokens is not False,
            priority=body.priority or 0,
        )
        answer = _Embeddings(body, len(asked))
        return GenerationResponse(backend, asked, as_body(answer, config))

    async def score(request: Request) -> Response:
        origin = origin_of(request, "score", config.request_timeout_s)
        body = await read_body(request, config, ScoreRequest)
        first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
        second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
        if len(first) not in (1, len(second)):
            raise InvalidRequest(
                f"text_2: {len(second)} texts for {len(first)} of text_1", param="text_2"
            )
        cut = body.truncate_prompt_tokens
        asked = _requests(
            [*first, *second], body.model, origin, param="text_2", most=most,
            truncate_prompt_tokens=cut,
        )  # fmt: skip
        answer = _Scores(body, len(first), len(second))
        return GenerationResponse(backend, asked, as_body(answer, config))

    async def rerank(request: Request) -> Response:
        origin = origin_of(request, "rerank", config.request_timeout_s)
        body = await read_body(request, config, RerankRequest)
        texts = [document_text(place, it) for place, it in enumerate(body.documents)]
        cut = body.truncate_prompt_tokens
        asked = _requests(
            [body.query, *texts], body.model, origin, param="documents", most=most,
            truncate_prompt_tokens=cut,
        )  # fmt: skip
        return GenerationResponse(backend, asked, as_body(_Ranking(body), config))

    described = describe_endpoint(
        EmbeddingRequest, EmbeddingAnswer, example={"model": "minilm", "input": "Hello there"}
    )
    summary = "Vectors of texts"
    app.post("/v1/embeddings", summary=summary, tags=["openai"], **described)(embeddings)
    described = describe_endpoint(
        ScoreRequest, ScoreAnswer, example={"model": "minilm", "text_1": "cat", "text_2": ["dog"]}
    )
    for path in ("/score", "/v1/score"):
        app.post(path, summary="How alike texts are", tags=["text"], **described)(score)
    example = {"model": "minilm", "query": "cat", "documents": ["dog", "car"]}
    described = describe_endpoint(RerankRequest, RerankAnswer, example=example)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        app.post(path, summary="Texts by their likeness", tags=["text"], **described)(rerank)
