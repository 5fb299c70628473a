"""A machine with an ordinary sshd follows a rotation of both CAs by the timer that it has anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from knot_keys.certificates import read_certificate, signer
from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_ssh.errors import StillInUse
from tests.support.machines import why_not
from tests.support.services import answering, ask, serving
from tests.support.sshdsite import CERTIFICATE, Site, joined
from tests.support.system import System, running_system
from tests.support.waiting import until

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"), pytest.mark.timeout(180)]
LIFETIME = 10
KRL = 1
"""Which of the lines that the script prints fetches what is revoked, and whom to trust."""
CAS = ("user-ca", "host-ca")


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sshd-rotation")
    with running_system(folder, "--certificate-lifetime", str(LIFETIME)) as system:
        frontend = system.space("frontend")
        with joined(system, folder / "machine", frontend, "db") as site:
            yield site


def test_rotation_is_followed_by_the_timer(own: Site) -> None:
    """No CA is activated before the machine has fetched it, none retired before its certificate is by the new one; then sshd
    trusts the new one alone, and forwards lead to it in every phase."""
    system = own.system
    with serving(answering(b"here")) as port:
        local = own.forward(port)
        assert ask(local) == b"here"
        step(system, "prepare")
        assert refused(system, "activate") == {"spaces": ["alice/db"]}
        assert own.cron(KRL).returncode == 0
        step(system, "activate")
        assert ask(local) == b"here"
        assert "certificates" in refused(system, "retire", ["host-ca"])  # the user CA signs for hours at most
        assert own.cron(KRL).returncode == 0
        until(lambda: {found["kind"] for found in left(system)} == {"tokens"}, 4 * LIFETIME, "only tokens are left behind")
        assert took(system, "user-ca", "retire")
        assert not took(system, "host-ca", "retire")  # for the token of `knot space create`, which nobody has used
        assert took(system, "host-ca", "retire", force=True)
        assert own.cron(KRL).returncode == 0
        until(lambda: ask(local) == b"here", what="the forward leads there again")
    ca = system.api("alice").get("api", "ca")
    files = own.machine.files()
    assert files["ssh/knot/user_ca.pub"].decode().split("\n") == [ca["user_ca"], ""]
    assert files["ssh/knot/known_hosts"].decode() == f"@cert-authority hub.knot {ca['host_ca']}\n"
    assert signer(read_certificate(files[CERTIFICATE].decode())) == fingerprint(parse_public_key(ca["host_ca"]))


def step(system: System, name: str) -> None:
    for what in CAS:
        until(lambda: took(system, what, name), 4 * LIFETIME, f"{name} of the {what}")  # noqa: B023  # asked at once


def took(system: System, what: str, name: str, *, force: bool = False) -> bool:
    try:
        system.api("admin").post("api", "rotations", what, body={"step": name, "force": force})
    except StillInUse:
        return False
    return True


def refused(system: System, name: str, cas: Sequence[str] = CAS) -> dict[str, list[str]]:
    """These CAs refuse this step once the agent has followed; gives whom for, by kind."""
    until(lambda: all("alice/frontend" not in found["names"] for found in left(system)), what="the agent has followed")
    assert not any(took(system, what, name) for what in cas)
    return {found["kind"]: found["names"] for found in left(system)}


def left(system: System) -> list[dict[str, Any]]:
    listing = system.api("admin").get("api", "rotations")["rotations"]
    return [found for entry in listing for found in entry["dependents"]]
