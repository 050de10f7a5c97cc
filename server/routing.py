"""Asks a model's router: for a request, for a dry run, for its thresholds."""

import time
from collections.abc import Mapping
from functools import cache

from router.router import BusyThresholds, Choice, RouteRequest
from runtime.errors import InvalidRequest, ModelNotReady, ServingError
from runtime.turns import call_in_turn
from server.fleet import Fleet
from server.metrics import DECISION_TIME, DECISIONS, OVERLAP_BLOCKS, PROMPT_BLOCKS
from server.models import ServedModel
from server.text.codec import EncodedPrompt
from server.text_desk import TextDesk
from wire.generate import GenerateRequest
from wire.routes import Route, RouteCandidate, RouteReport, Thresholds

# Not DECISIONS: a worker's series ends when it leaves.
_decision_time = cache(DECISION_TIME.labels)
_prompt_blocks = cache(PROMPT_BLOCKS.labels)
_overlap_blocks = cache(OVERLAP_BLOCKS.labels)


def route_request(
    request: GenerateRequest,
    prompt: EncodedPrompt,
    *,
    key: str,
    exclude: frozenset[str] = frozenset(),
) -> RouteRequest:
    """What the router needs to know of a request; `key` is its name there."""
    return RouteRequest(
        request_id=key,
        token_ids=prompt.token_ids,
        lora_name=request.lora_name,
        cache_salt=request.cache_salt,
        session_id=_session_of(request),
        session_ends=request.session_ends,
        pinned=request.pinned_worker,
        pinned_rank=request.data_parallel_rank,
        exclude=exclude,
    )


def _session_of(request: GenerateRequest) -> str | None:
    """The session's name among those of all clients: each API key has its own."""
    if request.session_id is None or request.principal is None:
        return request.session_id
    return f"{request.principal}\0{request.session_id}"


def choose(model: ServedModel, route: RouteRequest, policy: str) -> Choice:
    """Choose a place and account for the choice.

    Raises ModelNotReady when there is none, Overloaded when all that may take it are busy,
    InvalidRequest for a rank that none has.
    """
    began_s = time.monotonic()
    choice = model.router.choose(route, began_s)
    name = model.card.name
    _decision_time(name).observe(time.monotonic() - began_s)
    if choice is None:
        raise _no_place(model, route)
    DECISIONS.labels(name, choice.worker_id, policy).inc()
    _prompt_blocks(name).inc(choice.prompt_blocks)
    _overlap_blocks(name).inc(choice.overlap_blocks)
    return choice


def started(model: ServedModel, route: RouteRequest, choice: Choice, now: float) -> None:
    """The request is on its way to the chosen place."""
    model.router.started(route, choice, now)
    if not model.router_works:
        model.router_works = True
        call_in_turn(_work, model)


def _work(model: ServedModel) -> None:
    """Have the router do what can wait, in as many turns of the loop as it takes."""
    model.router_works = model.router.work(time.monotonic())
    if model.router_works:
        call_in_turn(_work, model)


def _no_place(model: ServedModel, route: RouteRequest) -> ServingError:
    name, rank = model.card.name, route.pinned_rank
    if route.pinned is not None and route.pinned not in model.links:
        text = f"worker {route.pinned!r} does not serve {name} at present"
        return ModelNotReady(text, param="worker")
    if rank is not None and model.ready and not route.exclude:
        text = f"data_parallel_rank: rank {rank} is one that no worker it may go to has"
        return InvalidRequest(text, param="data_parallel_rank")
    return ModelNotReady(f"model {name!r} has no ready worker", param="model")


def shown_route(choice: Choice) -> Route:
    """The choice as clients are told of it."""
    return Route(
        worker_id=choice.worker_id,
        data_parallel_rank=choice.rank,
        overlap_blocks=choice.overlap_blocks,
        prompt_blocks=choice.prompt_blocks,
        cost=choice.cost,
    )


def route_report(model: ServedModel, route: RouteRequest) -> RouteReport:
    """Say where a request would go; raises ModelNotReady or InvalidRequest when nowhere."""
    candidates = model.router.explain(route, time.monotonic())
    if not candidates:
        raise _no_place(model, route)
    best = next((it for it in candidates if not it.busy), candidates[0])
    block_size = model.card.block_size
    return RouteReport(
        model=model.card.name,
        worker_id=best.place.worker_id,
        address=model.links[best.place.worker_id].instance.address,
        data_parallel_rank=best.place.rank,
        overlap_blocks=best.overlap_blocks,
        prompt_blocks=len(route.token_ids) // block_size if block_size else 0,
        candidates=[
            RouteCandidate(
                worker_id=it.place.worker_id,
                data_parallel_rank=it.place.rank,
                overlap_blocks=it.overlap_blocks,
                cost=it.cost,
                active_blocks=it.active_blocks,
                prefill_tokens=it.prefill_tokens,
                busy=it.busy,
            )
            for it in candidates
        ],
    )


class RoutingDesk:
    """Dry runs and thresholds (a wire.generate.Routing)."""

    def __init__(self, fleet: Fleet, texts: TextDesk) -> None:
        self._fleet = fleet
        self._texts = texts

    async def route(self, request: GenerateRequest) -> RouteReport:
        """Say where a request would go; nothing is sent or counted.

        Raises what the request itself would meet: ModelNotFound, ModelNotReady, InvalidRequest.
        """
        model = self._fleet.model(request.model)
        request = model.with_adapter(request)
        prompt = await self._texts.encode(model.codec, request)
        return route_report(model, route_request(request, prompt, key=""))

    def thresholds(self) -> Mapping[str, Thresholds]:
        """The thresholds of every model."""
        return {it.card.name: _shown(it.router.thresholds) for it in self._fleet.models()}

    def thresholds_of(self, model: str) -> Thresholds:
        """One model's thresholds; raises ModelNotFound."""
        return _shown(self._fleet.model(model).router.thresholds)

    def set_thresholds(self, model: str, wanted: Thresholds) -> Thresholds:
        """Set a model's thresholds and return them; raises ModelNotFound."""
        served = self._fleet.model(model)
        self._fleet.set_thresholds(served, wanted)
        return _shown(served.router.thresholds)


def _shown(thresholds: BusyThresholds) -> Thresholds:
    return Thresholds(
        active_decode_blocks=thresholds.active_decode_blocks,
        active_prefill_tokens=thresholds.active_prefill_tokens,
    )
