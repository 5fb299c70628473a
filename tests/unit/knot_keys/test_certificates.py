"""Certificates: what is issued, and every rung of the ladder that refuses."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import (
    BACKDATE,
    LIFETIME,
    CertificateRefused,
    check_client,
    check_endpoint,
    check_host,
    check_hub,
    expires_at,
    issue_client,
    issue_host,
    read_certificate,
    starts_at,
)
from knot_keys.identity import HostIdentity, HubIdentity, Identity
from knot_keys.keyfiles import fingerprint, new_key
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.errors import KnotError
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone

Key = asyncssh.SSHKey

NOW = 1_700_000_000
AN_ID = "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"
PRINCIPAL = Principal(Owner("alice"), Zone("eu"))
AGENT = Identity.agent(PRINCIPAL, SpaceName("backend"), SpaceId(AN_ID))
PERSON = Identity.person(Owner("alice"), [Zone("eu"), Zone("us")])
HOST = HostIdentity(PRINCIPAL, SpaceName("backend"), SpaceId(AN_ID))
HOST_NAMES = [AN_ID, "backend.alice.eu.knot"]

PLAIN: dict[str, Any] = {
    "permit_x11_forwarding": False,
    "permit_agent_forwarding": False,
    "permit_pty": False,
    "permit_user_rc": False,
}
"""What asyncssh must be told so that it permits port forwarding alone."""


def client(ca: Key, key: Key, **changes: Any) -> SSHOpenSSHCertificate:
    """A client certificate for AGENT, made with asyncssh directly, with some things changed."""
    principals, key_id = AGENT.encode()
    fields = {"key_id": key_id, "principals": principals, "valid_after": NOW - 10, "valid_before": NOW + 10, **PLAIN, **changes}
    return read_certificate(ca.generate_user_certificate(key, **fields).export_certificate().decode())


def host(ca: Key, key: Key, **changes: Any) -> SSHOpenSSHCertificate:
    """A host certificate for HOST, made with asyncssh directly, with some things changed."""
    principals, key_id = HOST.encode()
    fields = {"key_id": key_id, "principals": principals, "valid_after": NOW - 10, "valid_before": NOW + 10, **changes}
    return read_certificate(ca.generate_host_certificate(key, **fields).export_certificate().decode())


def refused_client(certificate: SSHOpenSSHCertificate, ca: Key, revoked: RevocationList = NOTHING_REVOKED) -> str:
    """The reason why a client certificate is refused now."""
    with pytest.raises(CertificateRefused) as caught:
        check_client(certificate, [ca], revoked, now=NOW)
    return str(caught.value)


def refused_host(
    certificate: SSHOpenSSHCertificate, ca: Key, revoked: RevocationList = NOTHING_REVOKED, expected: list[str] | None = None
) -> str:
    """The reason why a host certificate is refused now."""
    with pytest.raises(CertificateRefused) as caught:
        check_host(certificate, [ca], HOST_NAMES if expected is None else expected, revoked, now=NOW)
    return str(caught.value)


def shown_by_ssh_keygen(line: str, folder: Path) -> dict[str, list[str]]:
    """What `ssh-keygen -L` prints, by heading."""
    path = folder / "key-cert.pub"
    path.write_text(line + "\n")
    done = subprocess.run(["ssh-keygen", "-L", "-f", path], capture_output=True, text=True, check=True)
    shown: dict[str, list[str]] = {}
    for text in done.stdout.splitlines()[1:]:
        heading, colon, value = text.strip().partition(": ")
        if text.startswith(" " * 16):
            shown[list(shown)[-1]].append(text.strip())
        else:
            shown[heading.rstrip(":")] = [value] if colon and value else []
    return shown


# Issued


@pytest.mark.parametrize("identity", [AGENT, PERSON])
def test_issued_client_passes_the_check(ca: Key, key: Key, identity: Identity) -> None:
    """An issued client certificate is good, and tells its identity, serial, key and end."""
    issued = issue_client(ca, key, identity, lifetime=100, now=NOW)
    checked = check_client(read_certificate(issued.line), [ca], NOTHING_REVOKED, now=NOW)
    assert checked.identity == identity
    assert (checked.serial, checked.fingerprint, checked.expires_at) == (issued.serial, issued.fingerprint, issued.expires_at)
    assert (issued.fingerprint, issued.key_id, issued.expires_at) == (fingerprint(key), identity.encode()[1], NOW + 100)


def test_issued_host_passes_the_check(ca: Key, key: Key) -> None:
    """An issued host certificate is good for its space, and tells its key and end."""
    issued = issue_host(ca, key, HOST, lifetime=100, now=NOW)
    check_host(read_certificate(issued.line), [ca], HOST_NAMES, NOTHING_REVOKED, now=NOW)
    assert read_certificate(issued.line).key == key.convert_to_public()
    assert (issued.fingerprint, issued.expires_at) == (fingerprint(key), NOW + 100)


def test_issued_hub_passes_the_check(ca: Key, key: Key) -> None:
    """The hub's certificate is good for the hub."""
    issued = issue_host(ca, key, HubIdentity(), now=NOW)
    check_hub(read_certificate(issued.line), [ca], now=NOW)
    assert read_certificate(issued.line).key == key.convert_to_public()


def test_issued_dates(ca: Key, key: Key) -> None:
    """A certificate starts a minute in the past, for clocks that are behind, and is good for an hour unless told otherwise."""
    certificate = read_certificate(issue_client(ca, key, AGENT, now=NOW).line)
    assert (starts_at(certificate), expires_at(certificate)) == (NOW - 60, NOW + 3600)
    assert (BACKDATE, LIFETIME) == (60, 3600)


def test_serials_differ(ca: Key, key: Key) -> None:
    """No two certificates have the same serial, and each fits where the store keeps it."""
    serials = {issue_client(ca, key, AGENT).serial for _ in range(50)}
    assert len(serials) == 50
    assert all(0 <= serial < 2**63 for serial in serials)


@pytest.mark.parametrize("lifetime", [0, -1, -30])
def test_nothing_expired_is_issued(ca: Key, key: Key, lifetime: int) -> None:
    """A certificate that would have ended already does not leave."""
    with pytest.raises(CertificateRefused, match="expired"):
        issue_client(ca, key, AGENT, lifetime=lifetime, now=NOW)


def test_no_ca_key_is_certified(ca: Key) -> None:
    """A CA does not certify its own key, as client or as host."""
    with pytest.raises(CertificateRefused, match="CA's key"):
        issue_client(ca, ca, AGENT)
    with pytest.raises(CertificateRefused, match="CA's key"):
        issue_host(ca, ca, HOST)


def test_host_keys_are_ed25519(ca: Key) -> None:
    """No other host key is certified."""
    with pytest.raises(CertificateRefused, match="key type"):
        issue_host(ca, asyncssh.generate_private_key("ecdsa-sha2-nistp256"), HOST)


@pytest.mark.parametrize("algorithm", ["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"])
def test_people_may_have_other_keys(ca: Key, algorithm: str) -> None:
    """A person's ECDSA or RSA key is certified."""
    issued = issue_client(ca, asyncssh.generate_private_key(algorithm), PERSON, now=NOW)
    assert check_client(read_certificate(issued.line), [ca], NOTHING_REVOKED, now=NOW).identity == PERSON


def test_short_rsa_keys_are_refused(ca: Key) -> None:
    """An RSA key that could be factored is neither certified nor let in."""
    short = asyncssh.generate_private_key("ssh-rsa", key_size=1024)
    with pytest.raises(CertificateRefused, match="key type or size"):
        issue_client(ca, short, PERSON, now=NOW)
    assert refused_client(client(ca, short), ca) == "key type or size"


def test_ssh_keygen_shows_a_client(ca: Key, key: Key, tmp_path: Path) -> None:
    """OpenSSH sees the principals, the key id and permit-port-forwarding, and nothing beyond."""
    issued = issue_client(ca, key, PERSON)
    shown = shown_by_ssh_keygen(issued.line, tmp_path)
    assert shown["Type"] == ["ssh-ed25519-cert-v01@openssh.com user certificate"]
    assert shown["Principals"] == ["alice@eu", "alice@us"]
    assert shown["Key ID"] == ['"person/alice/eu,us/-/-"']
    assert shown["Serial"] == [str(issued.serial)]
    assert shown["Critical Options"] == ["(none)"]
    assert shown["Extensions"] == ["permit-port-forwarding"]


def test_ssh_keygen_shows_a_host(ca: Key, key: Key, tmp_path: Path) -> None:
    """OpenSSH sees the id and the full name, and no options."""
    shown = shown_by_ssh_keygen(issue_host(ca, key, HOST).line, tmp_path)
    assert shown["Type"] == ["ssh-ed25519-cert-v01@openssh.com host certificate"]
    assert shown["Principals"] == HOST_NAMES
    assert shown["Key ID"] == [f'"host/alice/eu/backend/{AN_ID}"']
    assert (shown["Critical Options"], shown["Extensions"]) == (["(none)"], ["(none)"])


# Refused clients


def test_the_unchanged_client_is_good(ca: Key, key: Key) -> None:
    """The certificate that the refusals below start from is good."""
    assert check_client(client(ca, key), [ca], NOTHING_REVOKED, now=NOW).identity == AGENT


def test_host_certificate_is_no_client(ca: Key, key: Key) -> None:
    """A host certificate does not log in, even of the right CA with a client's fields."""
    names, key_id = AGENT.encode()
    assert refused_client(host(ca, key, principals=names, key_id=key_id), ca) == "wrong kind of certificate"


def test_client_of_an_unknown_ca(ca: Key, key: Key) -> None:
    """A certificate that another CA signed is refused."""
    assert refused_client(client(new_key("other"), key), ca) == "unknown CA"


def test_client_that_signed_itself(ca: Key, key: Key) -> None:
    """A certificate that its own key signed is refused."""
    assert refused_client(client(key, key), ca) == "unknown CA"


def test_no_ca_at_all(ca: Key, key: Key) -> None:
    """Where no CA is trusted, nobody is."""
    with pytest.raises(CertificateRefused, match="unknown CA"):
        check_client(client(ca, key), [], NOTHING_REVOKED, now=NOW)


def test_either_of_two_cas(ca: Key, key: Key) -> None:
    """While CAs are exchanged, both are trusted, given as public or private key."""
    for cas in ([new_key("old"), ca], [ca.convert_to_public()]):
        assert check_client(client(ca, key), cas, NOTHING_REVOKED, now=NOW).identity == AGENT


def test_ca_key_as_login_key(ca: Key) -> None:
    """A CA's key does not log in, even with a certificate of that CA."""
    assert refused_client(client(ca, ca), ca) == "a CA's key as login key"


def test_other_trusted_ca_key_as_login_key(ca: Key) -> None:
    """Nor does the key of another CA that is trusted at the same time."""
    old = new_key("old CA")
    with pytest.raises(CertificateRefused, match="CA's key"):
        check_client(client(ca, old), [ca, old], NOTHING_REVOKED, now=NOW)


@pytest.mark.parametrize(
    ("after", "before", "reason"),
    [
        (NOW - 100, NOW - 1, "expired"),
        (NOW - 100, NOW, "expired"),
        (NOW + 1, NOW + 100, "not yet valid"),
        (0, 1, "expired"),
    ],
)
def test_client_out_of_its_time(ca: Key, key: Key, after: int, before: int, reason: str) -> None:
    """A certificate is good from its first second and up to its last, exclusive."""
    assert refused_client(client(ca, key, valid_after=after, valid_before=before), ca) == reason


def test_client_in_its_time(ca: Key, key: Key) -> None:
    """The first second counts."""
    assert check_client(client(ca, key, valid_after=NOW, valid_before=NOW + 1), [ca], NOTHING_REVOKED, now=NOW)


def test_client_without_principals(ca: Key, key: Key) -> None:
    """A certificate without principals, which SSH takes for one that is good for everybody, is refused."""
    assert refused_client(client(ca, key, principals=()), ca) == "no principals"


def test_revoked_client(ca: Key, key: Key) -> None:
    """A certificate is refused by its serial, and every certificate of a revoked key; another's revocation does not matter."""
    assert refused_client(client(ca, key, serial=7), ca, RevocationList.of([7], [])) == "revoked"
    assert refused_client(client(ca, key, serial=7), ca, RevocationList.of([], [fingerprint(key)])) == "revoked"
    assert check_client(client(ca, key, serial=7), [ca], RevocationList.of([6, 8], [fingerprint(ca)]), now=NOW)


@pytest.mark.parametrize(
    "options",
    [
        {"force_command": "/bin/true"},
        {"source_address": ["127.0.0.0/8"]},
        {"permit_pty": True},
        {"permit_x11_forwarding": True},
        {"permit_agent_forwarding": True},
        {"permit_user_rc": True},
        {"permit_port_forwarding": False},
        {"touch_required": False},
    ],
    ids=str,
)
def test_client_with_other_options(ca: Key, key: Key, options: dict[str, Any]) -> None:
    """A certificate permits port forwarding, and neither less nor more."""
    assert refused_client(client(ca, key, **options), ca) == "options other than permit-port-forwarding"


@pytest.mark.parametrize(
    ("names", "key_id"),
    [
        (["alice@eu", "alice@us"], AGENT.encode()[1]),
        (["alice@eu", "alice@eu"], AGENT.encode()[1]),
        (["bob@eu"], AGENT.encode()[1]),
        (["alice@eu"], ""),
        (["alice@eu"], "hub"),
        (HOST_NAMES, HOST.encode()[1]),
    ],
)
def test_client_of_no_identity(ca: Key, key: Key, names: list[str], key_id: str) -> None:
    """A certificate whose principals and key id do not go together is refused."""
    assert refused_client(client(ca, key, principals=names, key_id=key_id), ca).startswith("identity: ")


# Refused hosts


def test_the_unchanged_host_is_good(ca: Key, key: Key) -> None:
    """The certificate that the refusals below start from is good, in whatever order its names stand."""
    for names in (HOST_NAMES, HOST_NAMES[::-1]):
        check_host(host(ca, key, principals=names), [ca], HOST_NAMES, NOTHING_REVOKED, now=NOW)


OTHER_ID = "11111111-2222-3333-4444-555555555555"


def refused_endpoint(certificate: SSHOpenSSHCertificate, ca: Key, revoked: RevocationList = NOTHING_REVOKED) -> str:
    """The reason why a certificate is not that of HOST's space."""
    with pytest.raises(CertificateRefused) as caught:
        check_endpoint(certificate, [ca], SpaceId(AN_ID), PRINCIPAL, revoked, now=NOW)
    return str(caught.value)


@pytest.mark.parametrize("name", ["backend", "renamed", "x"])
def test_endpoint_by_any_name(ca: Key, key: Key, name: str) -> None:
    """A space is told by its id, owner and zone, whatever it was called when it was certified."""
    called = HostIdentity(PRINCIPAL, SpaceName(name), SpaceId(AN_ID))
    certificate = read_certificate(issue_host(ca, key, called, now=NOW).line)
    assert check_endpoint(certificate, [ca], SpaceId(AN_ID), PRINCIPAL, NOTHING_REVOKED, now=NOW) == called


@pytest.mark.parametrize(
    ("owner", "zone", "space_id"), [("bob", "eu", AN_ID), ("alice", "us", AN_ID), ("alice", "eu", OTHER_ID)]
)
def test_endpoint_of_another(ca: Key, key: Key, owner: str, zone: str, space_id: str) -> None:
    """Another owner's space, one in another zone, or one of the same name with another id, is not the space that is wanted."""
    another = HostIdentity(Principal(Owner(owner), Zone(zone)), SpaceName("backend"), SpaceId(space_id))
    certificate = read_certificate(issue_host(ca, key, another, now=NOW).line)
    assert refused_endpoint(certificate, ca).startswith("it is for ")


@pytest.mark.parametrize(
    "names",
    [
        [AN_ID],
        ["backend.alice.eu.knot"],
        [AN_ID, "backend.alice.eu.knot", "other.alice.eu.knot"],
        [AN_ID, "backend.bob.eu.knot"],
        [AN_ID, "backend.alice.us.knot"],
        [AN_ID, "x.backend.alice.eu.knot"],
        [AN_ID, "backend.alice.eu.knot.example.com"],
        [AN_ID, "*.alice.eu.knot"],
        [AN_ID, "hub.knot"],
        [OTHER_ID, "backend.alice.eu.knot"],
    ],
    ids=str,
)
def test_endpoint_with_other_names(ca: Key, key: Key, names: list[str]) -> None:
    """An endpoint's names are its id and one full name of its owner and zone, that its key id says too, and nothing besides."""
    assert refused_endpoint(host(ca, key, principals=names), ca).startswith("it is for ")


def test_endpoint_is_checked_like_every_host(ca: Key, key: Key) -> None:
    """Nothing else that makes a host certificate void is forgiven."""
    assert refused_endpoint(client(ca, key), ca) == "wrong kind of certificate"
    assert refused_endpoint(host(new_key("other"), key), ca) == "unknown CA"
    assert refused_endpoint(host(ca, key, valid_before=NOW), ca) == "expired"
    assert refused_endpoint(host(ca, key, valid_after=NOW + 1), ca) == "not yet valid"
    assert refused_endpoint(host(ca, key, serial=7), ca, RevocationList.of([7], [])) == "revoked"
    assert refused_endpoint(host(ca, asyncssh.generate_private_key("ssh-rsa")), ca) == "key type"
    assert refused_endpoint(read_certificate(issue_host(ca, key, HubIdentity(), now=NOW).line), ca) == "it is for hub.knot"


def test_client_certificate_is_no_host(ca: Key, key: Key) -> None:
    """A client certificate does not make a host, even of the right CA with a host's names."""
    assert refused_host(client(ca, key, principals=HOST_NAMES), ca) == "wrong kind of certificate"


def test_host_of_an_unknown_ca(ca: Key, key: Key) -> None:
    """A host that another CA signed is refused."""
    assert refused_host(host(new_key("other"), key), ca) == "unknown CA"


@pytest.mark.parametrize(
    "names",
    [
        ["11111111-2222-3333-4444-555555555555", "backend.alice.eu.knot"],
        [AN_ID, "backend.bob.eu.knot"],
        [AN_ID, "backend.alice.us.knot"],
        [AN_ID],
        ["backend.alice.eu.knot"],
        [*HOST_NAMES, "hub.knot"],
        ["hub.knot"],
        ["*"],
    ],
    ids=str,
)
def test_host_that_names_another(ca: Key, key: Key, names: list[str]) -> None:
    """A host must be that space of that owner in that zone, and nothing besides."""
    assert refused_host(host(ca, key, principals=names), ca).startswith("it is for ")


def test_host_without_principals(ca: Key, key: Key) -> None:
    """A host certificate for everybody is for nobody, also where nobody is expected."""
    assert refused_host(host(ca, key, principals=()), ca) == "no principals"
    assert refused_host(host(ca, key, principals=()), ca, expected=[]) == "no principals"


def test_no_host_expected(ca: Key, key: Key) -> None:
    """Where no name is expected, no host is good."""
    assert refused_host(host(ca, key), ca, expected=[]).startswith("it is for ")


def test_space_is_not_the_hub(ca: Key, key: Key) -> None:
    """A space's host certificate does not pass for the hub's."""
    with pytest.raises(CertificateRefused, match="it is for"):
        check_hub(host(ca, key), [ca], now=NOW)


@pytest.mark.parametrize(("after", "before", "reason"), [(0, NOW, "expired"), (NOW + 1, NOW + 2, "not yet valid")])
def test_host_out_of_its_time(ca: Key, key: Key, after: int, before: int, reason: str) -> None:
    """A host certificate has its time too."""
    assert refused_host(host(ca, key, valid_after=after, valid_before=before), ca) == reason


def test_revoked_host(ca: Key, key: Key) -> None:
    """A host certificate is refused by its serial, and one for a revoked key; another's revocation does not matter."""
    assert refused_host(host(ca, key, serial=7), ca, RevocationList.of([7], [])) == "revoked"
    assert refused_host(host(ca, key, serial=7), ca, RevocationList.of([], [fingerprint(key)])) == "revoked"
    check_host(host(ca, key, serial=7), [ca], HOST_NAMES, RevocationList.of([6, 8], [fingerprint(ca)]), now=NOW)


def test_ca_key_as_host_key(ca: Key) -> None:
    """A CA's key is no host key."""
    assert refused_host(host(ca, ca), ca) == "a CA's key as login key"


# Read


@pytest.mark.parametrize(
    "line", ["", "nonsense", "ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519-cert-v01@openssh.com AAAA", "é"]
)
def test_other_text_is_no_certificate(line: str) -> None:
    """What is no certificate is an error, not a crash."""
    with pytest.raises(KnotError, match="not an OpenSSH certificate"):
        read_certificate(line)


def test_public_key_is_no_certificate(key: Key) -> None:
    """A plain public key is no certificate."""
    with pytest.raises(KnotError, match="not an OpenSSH certificate"):
        read_certificate(key.export_public_key().decode())


def test_altered_certificate_is_not_read(ca: Key, key: Key) -> None:
    """A certificate in which one principal was changed no longer carries its CA's signature."""
    data = client(ca, key).public_data.replace(b"alice@eu", b"alicf@eu")
    with pytest.raises(KnotError, match="not an OpenSSH certificate"):
        read_certificate(f"ssh-ed25519-cert-v01@openssh.com {base64.b64encode(data).decode()}")
