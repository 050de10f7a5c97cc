"""What the terminal tools' command lines share: where the server is and who asks it."""

from dataclasses import dataclass
from pathlib import Path

from runtime.config import option
from runtime.config_option import HOST_PORT
from runtime.errors import InvalidConfig
from runtime.options import DAY_S, TargetOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(TargetOptions):
    """What every KServe client in the terminal has."""

    target: str = option(
        "127.0.0.1:8001", help="gRPC address of the server", group="Server", form=HOST_PORT,
        metavar="HOST:PORT",
    )  # fmt: skip
    model: str | None = option(
        None, help="model to ask (default: the server's first one)", group="Request"
    )
    api_key: str | None = option(
        None, help="API key, where the server wants one", group="Server", metavar="KEY",
        secret=True, secret_flag=True,
    )  # fmt: skip
    api_key_file: Path | None = option(
        None, help="file that holds the API key", group="Server", metavar="FILE"
    )
    request_timeout_s: float = option(
        0.0, help="limit of a whole request; 0 is none", group="Request", unit="s", least=0,
        most=DAY_S,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        if self.api_key is not None and self.api_key_file is not None:
            raise InvalidConfig("api_key and api_key_file: give one", param="api_key_file")
        _ = self.target_client_tls

    def metadata(self) -> dict[str, str]:
        """Return the call metadata that says who asks.

        Raises InvalidConfig for a key that cannot be read or sent.
        """
        key, field = self.api_key, "api_key"
        if self.api_key_file is not None:
            field = "api_key_file"
            try:
                key = self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidConfig(f"{field}: {error}", param=field) from error
        if key is None:
            return {}
        if not key or not all("!" <= char <= "~" for char in key):
            raise InvalidConfig(f"{field}: a key is printable ASCII without spaces", param=field)
        return {"authorization": f"Bearer {key}"}
