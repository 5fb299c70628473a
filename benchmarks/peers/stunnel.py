"""stunnel: a TLS connection for each forwarded connection."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.peers.peer import Peer, line_with, program
from benchmarks.ports import free_port

COMMON = """\
foreground = yes
pid =
debug = 4
sslVersionMin = TLSv1.3
ciphersuites = TLS_AES_128_GCM_SHA256
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
"""
SERVER = COMMON + "[forward]\naccept = 127.0.0.1:{accept}\nconnect = 127.0.0.1:{connect}\ncert = {certificate}\n"
CLIENT = (
    COMMON
    + "[forward]\nclient = yes\naccept = 127.0.0.1:{accept}\nconnect = 127.0.0.1:{connect}\n"
    + "CAfile = {certificate}\nverifyPeer = yes\n"
)


class Stunnel(Peer):
    """A pair of stunnels; the client checks the server's certificate."""

    name = "stunnel"
    about = "client and server, TLS 1.3 with AES-128-GCM, TCP_NODELAY, a throw-away certificate; each connection is a TLS one"
    tasks_per_connection = 2

    @classmethod
    def version(cls) -> str:
        return " ".join(line_with("stunnel ", program("stunnel"), "-version").split()[:2])

    def start(self) -> None:
        self._certificate = make_certificate(self.folder / "certificate.pem")

    def forward(self, service_port: int) -> int:
        between = free_port()
        self._stunnel("server", SERVER, between, service_port)
        local = free_port()
        self._stunnel("client", CLIENT, local, self.route(between))
        return local

    def _stunnel(self, end: str, config: str, accept: int, connect: int) -> None:
        file = self.folder / f"{end}.conf"
        file.write_text(config.format(accept=accept, connect=connect, certificate=self._certificate))
        self.run(end, [program("stunnel"), str(file)])


def make_certificate(path: Path) -> Path:
    """A self-signed certificate and its key in one PEM file, valid for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    path.chmod(0o600)
    return path
