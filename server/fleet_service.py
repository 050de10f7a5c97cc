"""The front door's part of penstock.FleetService: where would a request go?"""

from typing import Any

from runtime.errors import ServingError
from runtime.rpc import CallInfo, Service
from runtime.turns import in_turns
from server.kserve_infer import read_request
from server.routing import RoutingDesk
from wire.kserve_terms import in_kserve_terms
from wire.pool import FLEET
from wire.routes import best_worker_response


class FrontFleetService:
    """BestWorker over requests in text."""

    def __init__(self, desk: RoutingDesk) -> None:
        self._desk = desk
        self.service = Service(name=FLEET, unary={"BestWorker": self._best_worker})

    async def _best_worker(self, message: Any, info: CallInfo) -> Any:
        request, _ = await in_turns(read_request(message.request, info, streaming_rpc=True))
        try:
            return best_worker_response(await self._desk.route(request))
        except ServingError as error:
            raise in_kserve_terms(error) from None
