"""What is revoked: certificates by serial, enrolled keys by fingerprint."""

from __future__ import annotations

import dataclasses

import asyncssh
import pytest
from asyncssh.public_key import SSHOpenSSHCertificate
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.certificates import issue_client, issue_host, read_certificate
from knot_keys.identity import HostIdentity, Identity
from knot_keys.keyfiles import fingerprint, new_key
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone

Key = asyncssh.SSHKey

PLACE = Principal(Owner("alice"), Zone("eu")), SpaceName("backend"), SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")
serials = st.integers(0, 2**63 - 1)
fingerprints = st.sampled_from(["SHA256:a", "SHA256:b", "SHA256:c"])


def client(ca: Key, key: Key) -> tuple[int, SSHOpenSSHCertificate]:
    """The serial of a new client certificate, and the certificate."""
    issued = issue_client(ca, key, Identity.agent(*PLACE))
    return issued.serial, read_certificate(issued.line)


def host(ca: Key, key: Key) -> tuple[int, SSHOpenSSHCertificate]:
    """The serial of a new host certificate, and the certificate."""
    issued = issue_host(ca, key, HostIdentity(*PLACE))
    return issued.serial, read_certificate(issued.line)


@given(serials, fingerprints)
def test_nothing_revoked_covers_nothing(serial: int, key: str) -> None:
    """The empty list makes nothing void, and is the list that one starts with."""
    assert not NOTHING_REVOKED.covers(serial, key)
    assert RevocationList.of([], []) == RevocationList() == NOTHING_REVOKED


@given(st.sets(serials, max_size=3), st.sets(fingerprints), serials, fingerprints)
def test_covers_by_serial_or_key(revoked: set[int], keys: set[str], serial: int, key: str) -> None:
    """A certificate is void when its serial is on the list, or its key; either is enough, and nothing else counts."""
    listed = RevocationList.of(revoked, keys)
    assert listed.covers(serial, key) == (key in keys or serial in revoked)
    assert all(listed.covers(one, key) for one in revoked)


@pytest.mark.parametrize("certified", [client, host], ids=["client", "host"])
def test_serial_voids_one_certificate(ca: Key, key: Key, certified: object) -> None:
    """A revoked serial makes that certificate void, and no other of the same key."""
    assert callable(certified)
    (serial, void), (_, good) = certified(ca, key), certified(ca, key)
    revoked = RevocationList.of([serial], [])
    assert revoked.covers_certificate(void)
    assert not revoked.covers_certificate(good)
    assert not revoked.has_key(key)


def test_key_voids_all_its_certificates(ca: Key, key: Key) -> None:
    """A revoked key makes every certificate of it void, and none of another key."""
    revoked = RevocationList.of([], [fingerprint(key)])
    other = new_key("other")
    assert all(revoked.covers_certificate(certificate) for _, certificate in (client(ca, key), client(ca, key), host(ca, key)))
    assert not any(revoked.covers_certificate(certificate) for _, certificate in (client(ca, other), host(ca, other)))


def test_key_is_known_by_either_half(key: Key) -> None:
    """A key is on the list whether it is shown as private or public key."""
    revoked = RevocationList.of([], [fingerprint(key)])
    assert revoked.has_key(key)
    assert revoked.has_key(key.convert_to_public())
    assert not revoked.has_key(new_key("other"))


def test_largest_serial(ca: Key, key: Key) -> None:
    """Serials are compared whole: the largest that a certificate can have is no other's."""
    principals, key_id = Identity.agent(*PLACE).encode()
    whole = 2**64 - 1
    line = ca.generate_user_certificate(key, key_id, serial=whole, principals=principals).export_certificate().decode()
    certificate = read_certificate(line)
    assert RevocationList.of([whole], []).covers_certificate(certificate)
    assert not RevocationList.of([whole - 1, 2**63 - 1, 2**32 - 1, 0], []).covers_certificate(certificate)


@given(st.lists(serials, max_size=3), st.lists(fingerprints, max_size=3))
def test_equal_by_contents(revoked: list[int], keys: list[str]) -> None:
    """Two lists are equal when they hold the same, in whatever order and however often."""
    one, other = RevocationList.of(revoked, keys), RevocationList.of(revoked[::-1] * 2, iter(keys[::-1]))
    assert one == other
    assert hash(one) == hash(other)


def test_list_cannot_be_changed() -> None:
    """A list that was handed out stays what it was."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        NOTHING_REVOKED.serials = frozenset({1})  # type: ignore[misc]
