"""Message classes of the wire, from a private descriptor pool (runtime/message_pool.py)."""

from runtime.message_pool import MessagePool

KSERVE = "inference.GRPCInferenceService"
"""The full name of the KServe v2 service."""

FLEET = "penstock.FleetService"
"""The full name of the service that Penstock's processes have for each other."""

_MESSAGES = MessagePool("wire", "wire.binpb")

POOL = _MESSAGES.pool
message_class = _MESSAGES.message_class
file_classes = _MESSAGES.file_classes
rpc_types = _MESSAGES.rpc_types
