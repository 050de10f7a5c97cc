"""A router of its own: tokens in, tokens out, each request on the worker that suits it best.

To who calls it, it is an engine, and its workers are what it computes with: a worker's service in
front of it makes it a worker that any front door can use.
"""

import time
from typing import Any

import msgspec

from router.router import Choice, RouteRequest
from runtime.errors import (
    Draining,
    InvalidRequest,
    ModelNotReady,
    ServingError,
    WorkerLost,
)
from runtime.rpc import CallInfo
from server.fleet import Fleet
from server.metrics import CANCELS, RETRIES
from server.models import ServedModel
from server.routing import choose, route_report, started
from server.worker_link import WorkerLink
from wire.routes import best_worker_response
from wire.token_contract import decode_token_request
from wire.tokens import TokenDelta, TokenRequest, TokenSink


class TokenRouter:
    """Sends token requests to the workers of one model.

    A request whose worker is lost before its first token goes to another one; a client's own
    errors do not count against a worker.
    """

    def __init__(self, fleet: Fleet, model: str, policy: str) -> None:
        self._fleet = fleet
        self._name = model
        self._policy = policy
        self._running: dict[str, _Routed] = {}

    @property
    def running(self) -> int:
        """Requests that are not over."""
        return len(self._running)

    @property
    def model(self) -> ServedModel:
        """The model; raises ModelNotFound, ModelNotReady."""
        return self._fleet.model(self._name)

    def submit(self, request: TokenRequest, sink: TokenSink) -> None:
        """Begin one request; raises ServingError, and nothing was started.

        Its sink then gets what an engine's gets (see wire.tokens.TokenSink).
        """
        if request.request_id in self._running:
            raise InvalidRequest(
                f"request id {request.request_id!r} is already running", param="request_id"
            )
        routed = _Routed(self, self.model, request, sink)
        routed.send()
        self._running[request.request_id] = routed

    def cancel(self, request_id: str) -> None:
        """End one request early; its sink gets nothing more. Unknown ids are ignored."""
        routed = self._running.pop(request_id, None)
        if routed is not None:
            routed.cancel()

    def ended(self, request_id: str) -> None:
        """Forget a request whose sink has had its end."""
        self._running.pop(request_id, None)

    def choose(self, model: ServedModel, route: RouteRequest) -> Choice:
        """Choose a place; raises what server.routing.choose does."""
        return choose(model, route, self._policy)

    async def best_worker(self, message: Any, info: CallInfo) -> Any:
        """BestWorker of penstock.FleetService, over requests in tokens."""
        request = decode_token_request(message.request)
        return best_worker_response(route_report(self.model, _route(request, frozenset())))


def _route(request: TokenRequest, failed: frozenset[str]) -> RouteRequest:
    return RouteRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        lora_name=request.lora_name,
        cache_salt=request.cache_salt,
        session_id=request.session_id,
        pinned=request.pinned_worker,
        pinned_rank=request.data_parallel_rank,
        exclude=failed,
    )


class _Routed:
    """One request on its worker (the link's TokenSink)."""

    def __init__(
        self, owner: TokenRouter, model: ServedModel, request: TokenRequest, sink: TokenSink
    ) -> None:
        self._owner = owner
        self._model = model
        self._request = request
        self._sink = sink
        self._failed: frozenset[str] = frozenset()
        self._open_choices = request.sampling.n
        self._has_token = False
        self._link: WorkerLink | None = None
        self._slot = -1

    def send(self) -> None:
        """Give it to a worker; raises ServingError when there is none."""
        request, model = self._request, self._model
        route = _route(request, self._failed)
        choice = self._owner.choose(model, route)
        link = model.links[choice.worker_id]
        rank = link.asked_rank(choice.rank)
        asked = msgspec.structs.replace(request, data_parallel_rank=rank, pinned_worker=None)
        self._slot = link.submit(asked, self)
        self._link = link
        started(model, route, choice, time.monotonic())

    def put(self, delta: TokenDelta) -> None:
        """Hand a delta on."""
        request_id = self._request.request_id
        self._has_token = True
        self._model.router.advanced(request_id, len(delta.token_ids), time.monotonic())
        if delta.finish_reason is not None:
            self._open_choices -= 1
            if self._open_choices == 0:
                self._leave()
                self._owner.ended(request_id)
        self._sink.put(delta)

    def put_tokens(self, token_ids: list[int], now: float) -> None:
        """Hand tokens on."""
        self.put(TokenDelta(token_ids=token_ids))

    def fail(self, error: ServingError) -> None:
        """Try another worker, or hand the error on."""
        if self._link is not None:
            self._link.cancel(self._slot)  # unless it was the worker itself that ended it
        failed_at = self._leave()
        if isinstance(error, WorkerLost | Draining) and not self._has_token:
            self._failed |= {failed_at}
            try:
                self.send()
            except (ModelNotReady, WorkerLost):
                pass  # what was said first is the better explanation
            except ServingError as other:
                error = other
            else:
                RETRIES.labels(self._model.card.name).inc()
                return
        self._owner.ended(self._request.request_id)
        self._sink.fail(error)

    def cancel(self) -> None:
        """Stop it at its worker."""
        link = self._link
        if link is not None:
            link.cancel(self._slot)
            CANCELS.labels(self._model.card.name).inc()
        self._leave()

    def _leave(self) -> str:
        link, self._link = self._link, None
        if link is None:
            return ""
        link.finished(self._slot)
        self._model.router.finished(self._request.request_id, time.monotonic())
        return link.instance.instance_id
