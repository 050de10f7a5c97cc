"""TLS files as gRPC's credentials."""

import grpc

from runtime.tls import ClientPem, ServerIdentity, ServerPem


def server_credentials(identity: ServerIdentity) -> grpc.ServerCredentials:
    """Return credentials that show each new connection the files as they are then.

    Whether clients need certificates is fixed here; whose they must be is not.
    """
    first = identity.current
    shown = [first]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called by C-core, on a thread of its own, before each handshake."""
        now = identity.current
        if now is shown[0]:
            return None
        shown[0] = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        fetch,  # type: ignore[arg-type] # None is no change; the stubs do not know
        require_client_authentication=first.client_ca is not None,
    )


def channel_credentials(pem: ClientPem) -> grpc.ChannelCredentials:
    """Return a client's credentials; C-core keeps them for the life of a channel."""
    return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)


def _configuration(pem: ServerPem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.client_ca)
