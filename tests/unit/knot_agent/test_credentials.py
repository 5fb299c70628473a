"""When certificates are renewed."""

from __future__ import annotations

import pytest

from knot_agent.credentials import Credentials
from knot_keys.connections import Credential
from knot_keys.keyfiles import new_key, public_line
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from tests.support.figures import Figure
from tests.unit.knot_agent.conftest import PRINCIPAL, Office

NOW = 1_700_000_000
KEY, HOST = new_key("agent"), new_key("host")


def issued(office: Office, lifetime: int, *, host_lifetime: int | None = None) -> Credentials:
    """Credentials that were certified at NOW."""
    return Credentials(
        office.membership(), office.certified(KEY, lifetime, NOW), office.host(HOST, host_lifetime or lifetime, NOW)
    )


@pytest.mark.parametrize("lifetime", [10, 60, 600, 3600, 24 * 3600])
def test_renewed_at_two_thirds(office: Office, lifetime: int) -> None:
    """A new certificate is renewed at two thirds of its lifetime, or up to a tenth of that earlier, however short its life."""
    credentials = issued(office, lifetime)
    due = lifetime * 2 / 3
    for _ in range(100):
        assert due * 0.85 <= credentials.renewal_wait(NOW) <= due * 1.01


@pytest.mark.threat(21, "a wrong clock, and when certificates are renewed", "after 2/3 of their life, by the monotonic clock")
def test_wrong_clock_does_not_matter_to_a_new_certificate(office: Office, figure: Figure) -> None:
    """Right after issue the wait is counted from the certificate's own dates, whatever our clock says."""
    wait = issued(office, 3600).renewal_wait()
    figure(f"an hour's certificate is renewed after {wait / 60:.0f} min")
    assert 3600 * 2 / 3 * 0.85 <= wait <= 3600 * 2 / 3


def test_waits_differ(office: Office) -> None:
    """A fleet that was certified together does not renew together."""
    credentials = issued(office, 3600)
    assert len({credentials.renewal_wait(NOW) for _ in range(20)}) > 10


def test_wait_shrinks_with_time(office: Office) -> None:
    """The later it is, the sooner renewal is due, and it is due at once from two thirds on."""
    credentials = issued(office, 3600)
    assert credentials.renewal_wait(NOW + 2000) < credentials.renewal_wait(NOW)
    for later in (2401, 3000, 3599, 3600, 10**6):
        assert credentials.renewal_wait(NOW + later) == 0


def test_clock_that_went_back(office: Office) -> None:
    """A clock that was set back by a day does not put renewal off past the end of the certificate's life."""
    assert issued(office, 3600).renewal_wait(NOW - 24 * 3600) <= 3600


def test_without_certificates(office: Office) -> None:
    """Who has no certificate yet, or lacks one of the two, asks for them at once."""
    whole = issued(office, 3600)
    for identity, host in (
        (Credential(KEY), Credential(HOST)),
        (whole.identity, Credential(HOST)),
        (Credential(KEY), whole.host),
    ):
        credentials = Credentials(whole.membership, identity, host)
        assert credentials.renewal_wait(NOW) == 0
        assert credentials.seconds_left(NOW) == 0
        assert not credentials.certified


def test_first_to_end_counts(office: Office) -> None:
    """The certificate that ends first decides what is left, and when both are renewed."""
    credentials = issued(office, 3600, host_lifetime=600)
    assert credentials.seconds_left(NOW) == 600
    assert credentials.renewal_wait(NOW) <= 400


def test_seconds_left(office: Office) -> None:
    """What is left goes down to nothing, and not below."""
    credentials = issued(office, 100)
    assert [credentials.seconds_left(NOW + later) for later in (0, 99, 100, 101)] == [100, 1, 0, 0]


def test_named(office: Office) -> None:
    """A host certificate is as it should be when it carries the name that the space has now."""
    credentials = issued(office, 3600)
    assert (credentials.name, credentials.is_named) == ("backend.alice.eu.knot", True)
    credentials.membership = office.membership("new")
    assert (credentials.name, credentials.is_named) == ("new.alice.eu.knot", False)
    credentials.replace(credentials.identity, office.host(HOST, 3600, NOW, "new"))
    assert credentials.is_named
    credentials.replace(credentials.identity, Credential(HOST))
    assert not credentials.is_named


def test_renewed_certificates_are_announced(office: Office) -> None:
    """Whoever listens hears of new certificates, after they are in place; who listens for revocations does not."""
    credentials = issued(office, 100)
    heard = []
    credentials.on_certificates.append(lambda: heard.append(credentials.seconds_left(NOW)))
    credentials.on_revocations.append(lambda: heard.append(-1))
    credentials.replace(office.certified(KEY, 200, NOW), office.host(HOST, 200, NOW))
    assert heard == [200]


def test_revocations_are_announced_once(office: Office) -> None:
    """Whoever listens hears of a list of what is revoked that differs from the one before; others do not."""
    credentials = issued(office, 100)
    heard: list[RevocationList | None] = []
    credentials.on_revocations.append(lambda: heard.append(credentials.revoked))
    credentials.on_certificates.append(lambda: heard.append(None))
    one, more, other = RevocationList.of([], ["a"]), RevocationList.of([1], ["a"]), RevocationList.of([2], ["a"])
    for revoked in (NOTHING_REVOKED, one, RevocationList.of([], ["a"]), more, other, NOTHING_REVOKED):
        credentials.revoke(revoked)
    assert heard == [one, more, other, NOTHING_REVOKED]


def test_membership_in_values(office: Office) -> None:
    """Principal and CAs are those of the membership."""
    credentials = issued(office, 100)
    assert credentials.principal == PRINCIPAL
    assert credentials.user_cas == (office.authority.user_ca_key,)
    assert credentials.host_cas == (office.authority.host_ca_key,)


def test_signed_by_the_first_ca(office: Office) -> None:
    """Certificates by another CA than the one that signs now are good, but to be renewed."""
    credentials = issued(office, 3600)
    assert credentials.is_signed
    for kind in ("user_cas", "host_cas"):
        other = public_line(new_key("next"))
        mine: list[str] = getattr(office.membership(), kind)
        credentials.enter(office.membership().model_copy(update={kind: [*mine, other]}))
        assert credentials.is_signed
        credentials.enter(office.membership().model_copy(update={kind: [other, *mine]}))
        assert not credentials.is_signed
        assert credentials.seconds_left(NOW) > 0


def test_trust_is_announced_once(office: Office) -> None:
    """Listeners hear of other CAs and of CAs that were given up, not of a new name; the hub is told all that are trusted."""
    credentials, heard = issued(office, 3600), list[int]()
    credentials.on_trust.append(lambda: heard.append(len(credentials.trust.cas)))
    both = office.membership().model_copy(update={"user_cas": [office.authority.user_ca, public_line(new_key("next"))]})
    for membership in (office.membership(), both, both, office.membership("other")):
        credentials.enter(membership)
    credentials.enter(office.membership().model_copy(update={"distrusted": ["SHA256:x"]}))
    assert heard == [3, 2, 2]
