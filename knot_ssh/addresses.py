"""Host and port as people write them: `host:port`, `[2001:db8::1]:22`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from knot_ssh.errors import BadInput
from knot_ssh.names import PORT_MAX

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]{1,253})):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or dial; port 0 lets the system choose when listening."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, what: str = "address") -> Address:
        """Read `host:port`; raises BadInput naming `what` was wrong."""
        match = _HOST_PORT.fullmatch(text)
        if match is None or int(match["port"]) > PORT_MAX or not _is_ipv6(match["v6"]):
            raise BadInput(f"{what} {text[:80]!r} is not host:port, like 127.0.0.1:2222 or [::1]:2222")
        return cls(match["v6"] or match["host"], int(match["port"]))

    @property
    def is_wildcard(self) -> bool:
        """Whether this stands for every address of the machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_server_url(url: str) -> bool:
    """Whether this is the URL of an HTTP server, with a port that can be one.

    A name or password in it is none of ours: errors and `status` repeat the URL, and nothing would send them.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if "@" in parts.netloc or not url.isprintable():
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0 and not (parts.query or parts.fragment)


def _is_ipv6(text: str | None) -> bool:
    """Whether brackets, where there were some, held an IPv6 address."""
    try:
        return text is None or ipaddress.IPv6Address(text) is not None
    except ValueError:
        return False
