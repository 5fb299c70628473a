"""Refresh: when it asks the server, and what becomes of the answer."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import multiprocessing
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from knot_keys.authority import Authority
from knot_keys.openssh import refreshing
from knot_keys.openssh.answers import OtherHostCa
from knot_keys.openssh.places import Places
from knot_keys.openssh.refreshing import expiry_notice
from knot_keys.openssh.state import State, read_state, write_state
from knot_ssh import doors
from knot_ssh.errors import KnotError, NotAuthenticated, Unavailable
from tests.support.noroom import no_room
from tests.support.saying_api import EMPTY_KRL, SayingApi, Status
from tests.unit.knot_keys.openssh.setups import do_refresh, do_setup, tree


def test_refresh_when_due(places: Places, server: SayingApi) -> None:
    """Nothing is asked before half of the life is over, everything after."""
    state = do_setup(places)
    server.asked.clear()
    assert do_refresh(places, if_due=True) == state
    assert server.asked == []
    write_state(places, _aged(state))
    do_refresh(places, if_due=True)
    assert sorted(server.asked) == ["/api/ca", "/api/certificates", "/api/krl", "/api/spaces"]
    assert read_state(places).renew_after >= state.renew_after


def _aged(state: State) -> State:
    """The same after most of its life."""
    return dataclasses.replace(state, valid_after=1, renew_after=2)


def test_two_at_once(places: Places, server: SayingApi) -> None:
    """Of several connections that are opened at once, one refreshes, and the others wait for it."""
    write_state(places, _aged(do_setup(places)))
    server.asked.clear()
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        asked = [pool.submit(functools.partial(do_refresh, places, if_due=True)) for _ in range(4)]
        states = [one.result() for one in asked]
    assert len(server.asked) == 4
    assert len({state.valid_before for state in states}) == 1


def test_refresh_does_not_wait_for_ever(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another refresh that hangs holds nobody up for long."""
    do_setup(places)
    monkeypatch.setattr(refreshing, "LOCK_SECONDS", 0.1)
    with places.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process"):
            do_refresh(places)


def test_answer_drop_by_drop(places: Places, server: SayingApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of which something comes all the time, and never the whole, holds ssh up no longer than one that is missing."""
    do_setup(places)
    monkeypatch.setattr(refreshing, "ANSWER_SECONDS", 0.5)
    with dripping() as url:
        write_state(places, dataclasses.replace(read_state(places), server=url))
        monkeypatch.setenv("KNOT_SERVER", url)
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"did not finish its answers within 0\.5 s"):
            do_refresh(places)
    assert time.monotonic() - began < refreshing.PATIENCE.read
    assert stat.S_IMODE(places.failed.stat().st_mode) == 0o600


@contextlib.contextmanager
def dripping() -> Iterator[str]:
    """The URL of a server that sends one byte of its head after the other."""

    def drip() -> None:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join()


def test_refresh_brings_what_is_new(places: Places, server: SayingApi) -> None:
    """A new space, a new name, a hub elsewhere and another list are there after a refresh."""
    do_setup(places)
    server.spaces[0]["name"] = "renamed"
    server.spaces.append(server.spaces[0] | {"id": "22222222-2222-3333-4444-555555555555", "name": "later"})
    hub = server.answers["/api/ca"]({}) | {"hub": "knot.example.com:22"}
    server.answers["/api/ca"] = lambda _: hub
    krl = EMPTY_KRL[:12] + (7).to_bytes(8, "big") + EMPTY_KRL[20:]
    server.answers["/api/krl"] = lambda _: krl
    do_refresh(places)
    text = places.spaces.read_text()
    assert "Host later.knot later.alice.eu.knot\n    HostName 22222222-" in text
    assert "Host renamed.knot " in text
    assert "frontend" not in text
    assert "HostName knot.example.com\n    Port 22\n" in places.ssh_config.read_text()
    assert places.krl.read_bytes() == krl


@pytest.mark.parametrize("path", ["/api/ca", "/api/certificates", "/api/spaces", "/api/krl"])
def test_refresh_that_fails_changes_nothing(places: Places, server: SayingApi, path: str) -> None:
    """Whatever the server says that makes no sense, the files stay, but for the mark that it failed."""
    do_setup(places)
    before = tree(places.home)
    server.answers[path] = lambda _: b"no" if path == "/api/krl" else {"spaces": [{"id": "x"}], "certificate": "x"}
    with pytest.raises(KnotError):
        do_refresh(places)
    places.failed.unlink()
    assert tree(places.home) == before


def test_other_host_ca(places: Places, server: SayingApi, stranger: Authority) -> None:
    """A refresh that is told another host CA changes nothing; a setup takes it, and drops the list of the old one."""
    do_setup(places)
    before = places.known_hosts.read_bytes()
    answer = server.answers["/api/ca"]({}) | {"host_ca": stranger.host_ca}
    server.answers["/api/ca"] = lambda _: answer
    server.answers["/api/krl"] = lambda _: Status(503, {"success": False, "error": "x", "code": "krl_unavailable"})
    with pytest.raises(OtherHostCa):
        do_refresh(places)
    assert places.known_hosts.read_bytes() == before
    do_setup(places)
    assert stranger.host_ca in places.known_hosts.read_text()
    assert not places.krl.exists()
    assert "RevokedHostKeys" not in places.ssh_config.read_text()


@pytest.mark.parametrize("krl", [EMPTY_KRL[:30], EMPTY_KRL + b"\x01rubbish"], ids=["cut short", "rubbish behind"])
def test_list_that_ssh_could_not_read(places: Places, server: SayingApi, krl: bytes) -> None:
    """ssh refuses every host where the list is unreadable, so one that `ssh-keygen` cannot read changes nothing."""
    do_setup(places)
    before = tree(places.home)
    server.answers["/api/krl"] = lambda _: krl
    with pytest.raises(KnotError, match="cannot read the server's key revocation list: Invalid KRL"):
        do_refresh(places)
    places.failed.unlink()
    assert tree(places.home) == before


def test_last_revocation_list_stays(places: Places, server: SayingApi) -> None:
    """A server that cannot make the list any more does not make ssh forget the last one."""
    do_setup(places)
    before = places.krl.read_bytes()
    server.answers["/api/krl"] = lambda _: Status(503, {"success": False, "error": "x", "code": "krl_unavailable"})
    do_refresh(places)
    assert places.krl.read_bytes() == before
    assert "RevokedHostKeys" in places.ssh_config.read_text()


def test_server_that_failed_is_spared(places: Places, server: SayingApi) -> None:
    """After a failure ssh asks nothing by itself for some seconds; by hand it is asked at once, and success ends that."""
    do_setup(places)
    server.answers["/api/ca"] = lambda _: Status(502, b"<html>")
    with pytest.raises(Unavailable):
        do_refresh(places)
    server.asked.clear()
    with pytest.raises(Unavailable, match="failed a moment ago"):
        do_refresh(places, by_itself=True)
    assert server.asked == []
    server.answers["/api/ca"] = lambda _: _good(server)
    do_refresh(places)
    do_refresh(places, by_itself=True)
    assert not places.failed.exists()


def _good(server: SayingApi) -> dict[str, str]:
    authority = server.authority
    return {"user_ca": authority.user_ca, "host_ca": authority.host_ca, "hub": "127.0.0.1:2222"}


def test_notice_of_expiry(places: Places) -> None:
    """A quiet refresh speaks only when the certificate has run out."""
    state = do_setup(places)
    assert expiry_notice(places, KnotError("away")) == ""
    write_state(places, dataclasses.replace(state, valid_before=state.valid_after + 1))
    assert "has run out" in expiry_notice(places, KnotError("away"))
    assert expiry_notice(places, KnotError("away")).endswith("cannot be renewed: away")


def test_token_of_another_server_is_not_sent(places: Places, server: SayingApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the environment names along with another server goes to neither: the setup's server is asked as ever."""
    do_setup(places)
    server.asked.clear()
    monkeypatch.setenv("KNOT_SERVER", "http://elsewhere.example")
    with pytest.raises(KnotError, match="no API token"):
        do_refresh(places)
    assert server.asked == []


def test_token_for_the_kept_server_is_not_sent(places: Places, server: SayingApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token alone in the environment is for the server that `knot login` has kept, and goes to no other one."""
    do_setup(places)
    server.asked.clear()
    monkeypatch.delenv("KNOT_SERVER")
    doors.keep("https://elsewhere.example", "knot_kept")
    with pytest.raises(NotAuthenticated):
        do_refresh(places)
    assert server.asked == []


def test_token_alone(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no login is kept, a token alone in the environment is for the server of the setup."""
    before = do_setup(places, lifetime=60)
    monkeypatch.delenv("KNOT_SERVER")
    assert do_refresh(places).server == before.server


def test_full_disk(places: Places, server: SayingApi) -> None:
    """Where nothing can be written the file is named, and the server is spared like one that failed."""
    do_setup(places)
    with no_room(), pytest.raises(OSError, match=r"File too large: '.*/id-cert\.pub'"):
        do_refresh(places)
    server.asked.clear()
    with pytest.raises(Unavailable, match="failed a moment ago"):
        do_refresh(places, by_itself=True)
    assert server.asked == []
