"""The certificate authorities: made once, kept, never remade."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from knot_keys.authority import HOST_CA_FILE, USER_CA_FILE, Authority
from knot_keys.certificates import CertificateRefused, check_client, check_host, read_certificate
from knot_keys.identity import HostIdentity, HubIdentity, Identity
from knot_keys.keyfiles import new_key, parse_public_key
from knot_keys.revocation import NOTHING_REVOKED
from knot_ssh.errors import KnotError, LooseFile
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone

PRINCIPAL = Principal(Owner("alice"), Zone("eu"))
SPACE = SpaceName("backend"), SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")
AGENT = Identity.agent(PRINCIPAL, *SPACE)
HOST = HostIdentity(PRINCIPAL, *SPACE)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


@pytest.mark.usefixtures("loose_umask", "authority")
def test_created_private(tmp_path: Path) -> None:
    """Both CA keys are 0600 under any umask."""
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (USER_CA_FILE, HOST_CA_FILE)]
    assert modes == [0o600, 0o600]


def test_loaded_as_created(authority: Authority, tmp_path: Path) -> None:
    """What is loaded is what was made."""
    loaded = Authority.load(tmp_path)
    assert (loaded.user_ca, loaded.host_ca) == (authority.user_ca, authority.host_ca)


def test_two_different_cas(authority: Authority) -> None:
    """Users and hosts have each their own CA, ed25519, and what is given for checking is the public half."""
    assert authority.user_ca != authority.host_ca
    assert parse_public_key(authority.user_ca) == authority.user_ca_key
    assert parse_public_key(authority.host_ca) == authority.host_ca_key


@pytest.mark.parametrize("name", [USER_CA_FILE, HOST_CA_FILE])
def test_never_made_over_another(tmp_path: Path, name: str) -> None:
    """Where either CA exists, nothing is made anew, and the file that is in the way is named."""
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(KnotError, match=f"{name} exists already"):
        Authority.create(tmp_path)
    assert (tmp_path / name).read_bytes() == b"precious"


@pytest.mark.usefixtures("authority")
@pytest.mark.parametrize("name", [USER_CA_FILE, HOST_CA_FILE])
def test_lost_ca_is_not_replaced(tmp_path: Path, name: str) -> None:
    """A CA that was lost is an error with the file's name; no new one is made in its place."""
    (tmp_path / name).unlink()
    with pytest.raises(KnotError, match=name):
        Authority.load(tmp_path)
    assert not (tmp_path / name).exists()


@pytest.mark.usefixtures("authority")
@pytest.mark.parametrize("name", [USER_CA_FILE, HOST_CA_FILE])
def test_damaged_ca_is_refused(tmp_path: Path, name: str) -> None:
    """A damaged CA is an error with the file's name, and stays as it is."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(KnotError, match=name):
        Authority.load(tmp_path)
    assert (tmp_path / name).read_bytes() == b""


@pytest.mark.usefixtures("authority")
@pytest.mark.parametrize("name", [USER_CA_FILE, HOST_CA_FILE])
def test_loose_ca_is_refused(tmp_path: Path, name: str) -> None:
    """A CA that others can read is refused."""
    (tmp_path / name).chmod(0o640)
    with pytest.raises(LooseFile, match=name):
        Authority.load(tmp_path)


def test_clients_are_signed_by_the_user_ca(authority: Authority) -> None:
    """A client certificate is good under the user CA and not under the host CA."""
    certificate = read_certificate(authority.certify_client(new_key("x"), AGENT, 60).line)
    assert check_client(certificate, [authority.user_ca_key], NOTHING_REVOKED).identity == AGENT
    with pytest.raises(CertificateRefused, match="unknown CA"):
        check_client(certificate, [authority.host_ca_key], NOTHING_REVOKED)


@pytest.mark.parametrize("identity", [HOST, HubIdentity()], ids=["space", "hub"])
def test_hosts_are_signed_by_the_host_ca(authority: Authority, identity: HostIdentity | HubIdentity) -> None:
    """A host certificate is good under the host CA and not under the user CA."""
    hub = isinstance(identity, HubIdentity)
    issued = authority.certify_hub(new_key("x"), 60) if hub else authority.certify_host(new_key("x"), HOST, 60)
    certificate = read_certificate(issued.line)
    names = identity.encode()[0]
    check_host(certificate, [authority.host_ca_key], names, NOTHING_REVOKED)
    with pytest.raises(CertificateRefused, match="unknown CA"):
        check_host(certificate, [authority.user_ca_key], names, NOTHING_REVOKED)


def test_no_private_key_is_printed(authority: Authority, tmp_path: Path) -> None:
    """A repr, which may get into a log, has no private key."""
    secret = (tmp_path / USER_CA_FILE).read_text().splitlines()[1]
    assert secret not in repr(authority)
