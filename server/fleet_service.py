"""The front door's part of penstock.FleetService: where would a request go?"""

from typing import Any

from runtime.errors import ServingError
from runtime.rpc import CallInfo, Service
from server.kserve_infer import in_kserve_terms, read_request
from server.routing import RoutingDesk
from wire import penstock_pb2 as pb
from wire.pool import FLEET
from wire.routes import RouteReport


class FrontFleetService:
    """BestWorker over requests in text."""

    def __init__(self, desk: RoutingDesk) -> None:
        self._desk = desk
        self.service = Service(name=FLEET, unary={"BestWorker": self._best_worker})

    async def _best_worker(self, message: Any, info: CallInfo) -> Any:
        request, _ = read_request(message.request, info, streaming_rpc=True)
        try:
            return best_worker_response(await self._desk.route(request))
        except ServingError as error:
            raise in_kserve_terms(error) from None


def best_worker_response(report: RouteReport) -> pb.BestWorkerResponse:
    """Write a report as the answer of BestWorker."""
    return pb.BestWorkerResponse(
        worker_id=report.worker_id,
        data_parallel_rank=report.data_parallel_rank,
        address=report.address,
        overlap_blocks=report.overlap_blocks,
        prompt_blocks=report.prompt_blocks,
        candidates=[
            pb.RouteCandidate(
                worker_id=it.worker_id,
                data_parallel_rank=it.data_parallel_rank,
                overlap_blocks=it.overlap_blocks,
                cost=it.cost,
                active_blocks=it.active_blocks,
                prefill_tokens=it.prefill_tokens,
                busy=it.busy,
            )
            for it in report.candidates
        ],
    )
