"""TLS of the HTTP API: certificate and key from files, read again when they are renewed.

New files count once they are whole: a certificate that fits its key and has not expired. Until then, and while one of the two
has been replaced and the other not yet, connections are served with what was good last.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from knot_ssh.errors import BadInput, KnotError
from knot_ssh.files import read_secret

log = structlog.get_logger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption alone. TLS 1.3 has nothing else."""
PAUSE = 2.0
"""Seconds between two looks at the files: soon enough, and it works on every filesystem, for symbolic links, too."""

Seen = tuple[tuple[int, int, int], ...]


class Tls:
    """The context that new connections are made with."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises KnotError, which names the file, for what cannot be used."""
        self._cert, self._key = cert, key
        self._seen = self._look()
        self.context = make_context(cert, key)

    def reload(self) -> None:
        """Take what the files hold now, or keep what is in use and log why; connections go on."""
        self._seen = self._look()
        try:
            self.context = make_context(self._cert, self._key)
        except KnotError as error:
            log.error("TLS certificate not renewed, the one before stays in use", reason=str(error))
        else:
            log.info("TLS certificate read", file=str(self._cert))

    async def watch(self) -> None:
        """Read the files again when they have changed, until cancelled."""
        while True:
            await asyncio.sleep(PAUSE)
            if self._look() != self._seen:
                self.reload()

    def _look(self) -> Seen:
        return tuple(_state(path) for path in (self._cert, self._key))


def make_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A server's context, TLS 1.2 or later; raises KnotError for a loose, missing, expired or wrong file."""
    _check_dates(cert)
    read_secret(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError:
        reason = "it is no PEM private key" if _holds_no_key(key) else "the key does not belong to the certificate"
        raise BadInput(f"tls_key: {key} cannot be used with {cert}: {reason}") from None
    except OSError as error:
        raise KnotError(f"tls_key: cannot read {key}: {error.strerror}") from None
    return context


def _check_dates(cert: Path) -> None:
    try:
        found = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    except OSError as error:
        raise KnotError(f"tls_cert: cannot read {cert}: {error.strerror}") from None
    except (ValueError, IndexError):
        raise BadInput(f"tls_cert: {cert} holds no PEM certificate") from None
    if found.not_valid_after_utc <= datetime.now(UTC):
        raise BadInput(f"tls_cert: {cert} expired at {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it")


def _holds_no_key(path: Path) -> bool:
    """OpenSSL names no reason where the key is of another kind than the certificate's."""
    try:
        serialization.load_pem_private_key(read_secret(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return True
    return False


def _no_passphrase() -> str:
    """OpenSSL would ask at the terminal."""
    raise BadInput("tls_key: the key has a passphrase; give one without, which nobody else can read")


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
