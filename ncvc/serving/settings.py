"""What may be set for the server, and who may reach it.

Loopback needs no token. Any other address does, because whoever reaches the port may use the model and, on the wire,
read the conversations: the server speaks plain HTTP and leaves TLS to a proxy in front of it.
"""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncvc.settings import settings_from

SHORTEST_TOKEN = 16
_TOKEN_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._~+/="  # RFC 6750, section 2.1


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Address, token and limits of the server; ``conf/serve.yaml`` holds the defaults and what each is for.

    ``ValueError`` names every setting that cannot be, and a host that others can reach without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    max_batch: int = 8
    max_waiting: int = 64
    gather_seconds: float = 0.02
    max_tokens: int = 1024
    temperature: float = 0.0
    max_body_bytes: int = 262_144
    max_messages: int = 256
    max_connections: int = 1536
    request_seconds: float = 600.0
    body_seconds: float = 15.0
    stalled_seconds: float = 30.0
    shutdown_seconds: float = 5.0
    prompts_file: Path | None = None

    def __post_init__(self) -> None:
        found = [
            f"{name}={getattr(self, name)}: must be at least {least}."
            for name, least in (
                ("max_batch", 1),
                ("max_waiting", 0),
                ("max_tokens", 1),
                ("max_body_bytes", 1024),
                ("max_messages", 1),
                ("max_connections", 1),
            )
            if getattr(self, name) < least
        ]
        found += [
            f"{name}={getattr(self, name)}: must be a number of seconds above 0."
            for name in ("request_seconds", "body_seconds", "stalled_seconds", "shutdown_seconds")
            if not 0 < getattr(self, name) < 1e7
        ]
        if not 0 <= self.gather_seconds <= 1:
            found.append(f"gather_seconds={self.gather_seconds}: must be from 0 to 1.")
        if not 0 <= self.temperature <= 2:
            found.append(f"temperature={self.temperature}: must be from 0 to 2.")
        if not 0 <= self.port <= 65535:
            found.append(f"port={self.port}: must be from 0 (any free port) to 65535.")
        found += self._token_problems()
        if found:
            raise ValueError("\n".join(found))
        if not self.token and not self.is_loopback:
            raise ValueError(
                f"host={self.host} lets other machines reach the model, and no token is set. Set the environment "
                f"variable NCVC_TOKEN to a secret of at least {SHORTEST_TOKEN} characters (for example from "
                "`openssl rand -hex 24`), or keep host=127.0.0.1 and reach it through `ssh -L`."
            )

    def _token_problems(self) -> list[str]:
        if self.token is None:
            return []
        if len(self.token) < SHORTEST_TOKEN:
            return [
                f"the token (NCVC_TOKEN) has {len(self.token)} characters; it needs at least {SHORTEST_TOKEN}, for "
                "example from `openssl rand -hex 24`. Unset it to serve on loopback without one."
            ]
        if not set(self.token) <= set(_TOKEN_CHARACTERS):
            return ["the token (NCVC_TOKEN) may hold letters, digits and -._~+/= only, as HTTP headers carry it."]
        return []

    @property
    def address(self) -> tuple[socket.AddressFamily, str]:
        """Address family and numeric address that ``host`` stands for: what is checked is what is bound."""
        if not self.host:
            raise ValueError("host is empty; set host=127.0.0.1, or host=0.0.0.0 with a token for every interface.")
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"host={self.host}: no such address ({error}); set host=127.0.0.1.") from error
        family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.AddressFamily(family), str(where[0])

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the server."""
        return ipaddress.ip_address(self.address[1].partition("%")[0]).is_loopback

    @property
    def places(self) -> int:
        """Requests that are admitted at once: running and waiting."""
        return self.max_batch + self.max_waiting


def server_settings(values: Mapping[str, Any]) -> ServerSettings:
    """The settings from plain values, as they stand in ``conf/serve.yaml``; ``ValueError`` names all that is wrong."""
    try:
        return settings_from(ServerSettings, values, path="serve")
    except ValueError as error:
        raise ValueError("\n".join(line.removeprefix("serve.") for line in str(error).splitlines())) from error
