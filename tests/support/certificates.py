"""TLS certificates for tests: a CA of their own, and what it certifies."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)
NAME = "knot.example.com"


class TlsCa:
    """A CA in a folder: `ca.pem`, and what it certifies, `tls.pem` and `tls.key`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ca.pem"
        self.cert, self.key = folder / "tls.pem", folder / "tls.key"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA")])
        builder = self._builder(self._name, self._key.public_key(), DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
        self._own = builder.sign(self._key, hashes.SHA256())
        self.file.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))

    def certify(self, *, until: datetime.timedelta = DAY) -> int:
        """Write a new key and a certificate for it, for 127.0.0.1, localhost and knot.example.com; gives its serial."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        builder = self._builder(subject, key.public_key(), until)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        cert = builder.add_extension(authority, critical=False).sign(self._key, hashes.SHA256())
        self.key.write_bytes(_private(key))
        self.key.chmod(0o600)
        self.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return cert.serial_number

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _private(key: ec.EllipticCurvePrivateKey, passphrase: bytes = b"") -> bytes:
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def key_of_another_kind() -> bytes:
    """A good private key in PEM, of a kind that no certificate here has."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def locked_key() -> bytes:
    """A private key with a passphrase."""
    return _private(ec.generate_private_key(ec.SECP256R1()), b"secret")


def _usage(*, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )
