"""TLS certificate and key from files."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest

from knot_server.http.tls import Tls, make_context
from knot_ssh.errors import KnotError, LooseFile
from tests.support.certificates import DAY, TlsCa, key_of_another_kind, locked_key


@pytest.fixture
def ca(tmp_path: Path) -> TlsCa:
    """A CA, and what it has certified."""
    made = TlsCa(tmp_path)
    made.certify()
    return made


def served(tls: Tls, ca: TlsCa) -> dict[str, object]:
    """The certificate that a client gets, in memory."""
    near, far, back = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.create_default_context(cafile=ca.file)
    client = back.wrap_bio(near, far, server_hostname="knot.example.com")
    server = tls.context.wrap_bio(far, near, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() in {"TLSv1.2", "TLSv1.3"}
    return dict(client.getpeercert() or {})


def refusal(ca: TlsCa) -> str:
    with pytest.raises(KnotError) as caught:
        make_context(ca.cert, ca.key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_fits_is_served(ca: TlsCa) -> None:
    """A client that trusts the CA, and that alone, is satisfied."""
    assert served(Tls(ca.cert, ca.key), ca)["subject"] == ((("commonName", "knot.example.com"),),)


def test_old_protocols_are_not_spoken(ca: TlsCa) -> None:
    """TLS 1.1 and before are refused, and so is every cipher without forward secrecy or authentication."""
    context = make_context(ca.cert, ca.key)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for cipher in context.get_ciphers():
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-")
        assert cipher["aead"]


def test_what_cannot_be_used(ca: TlsCa, tmp_path: Path) -> None:
    """Each thing that may be wrong is one line that names the file."""
    whole = ca.key.read_bytes()
    ca.key.write_bytes(b"nonsense")
    assert "no PEM private key" in refusal(ca)
    ca.key.write_bytes(locked_key())
    assert "passphrase" in refusal(ca)
    other = tmp_path / "other"
    other.mkdir()
    stranger = TlsCa(other)
    stranger.certify()
    ca.key.write_bytes(stranger.key.read_bytes())
    assert "does not belong" in refusal(ca)
    ca.key.write_bytes(key_of_another_kind())
    assert "does not belong" in refusal(ca)
    ca.key.unlink()
    assert str(ca.key) in refusal(ca)
    ca.key.write_bytes(whole)
    ca.key.chmod(0o600)
    ca.cert.write_bytes(whole)
    assert f"{ca.cert} holds no PEM certificate" in refusal(ca)
    ca.cert.unlink()
    assert str(ca.cert) in refusal(ca)
    ca.certify(until=datetime.timedelta(seconds=-1))
    assert "expired at" in refusal(ca)


def test_loose_key(ca: TlsCa) -> None:
    """A key that others can read is refused like every secret."""
    ca.key.chmod(0o640)
    with pytest.raises(LooseFile, match="chmod 600"):
        Tls(ca.cert, ca.key)


def test_renewed(ca: TlsCa) -> None:
    """What was replaced is served from then on; what is not whole is not, until it is."""
    tls = Tls(ca.cert, ca.key)
    before = served(tls, ca)["serialNumber"]
    old = ca.key.read_bytes()
    serial = ca.certify()
    new = ca.key.read_bytes()
    ca.key.write_bytes(old)
    tls.reload()
    assert served(tls, ca)["serialNumber"] == before
    ca.key.write_bytes(new)
    tls.reload()
    assert int(str(served(tls, ca)["serialNumber"]), 16) == serial != before
    ca.certify(until=-DAY)
    tls.reload()
    assert int(str(served(tls, ca)["serialNumber"]), 16) == serial
