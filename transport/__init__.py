"""gRPC over HTTP/2 on asyncio, without C-core: drives the services of runtime.rpc.

`connection.py` is the protocol without I/O: bytes in, events and bytes out. `server_protocol.py`
is its asyncio shell, `server.py` the server.
"""
