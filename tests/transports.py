"""The transport of the tests' servers: PENSTOCK_GRPC_TRANSPORT, which our processes read too."""

import os

from runtime.grpc_options import GrpcOptions

TRANSPORT = os.environ.get("PENSTOCK_GRPC_TRANSPORT", GrpcOptions().transport)
