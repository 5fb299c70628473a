"""Which door a request goes through."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from knot_ssh.doors import Given, api, chosen_server, given, keep, keeps_login, open_ports
from knot_ssh.errors import BadInput, LooseFile, NotAuthenticated, Unavailable
from knot_ssh.places import config_file, default_socket
from knot_ssh.ports import PortsOfAgent, PortsOfServer
from knot_ssh.trust import Trust

URL = "https://knot.example.com"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which nothing is named, kept or running."""
    for name in ("KNOT_SERVER", "KNOT_URL", "KNOT_TOKEN", "KNOT_AGENT_SOCKET", "KNOT_CA_FILE", "KNOT_ALLOW_PLAIN_HTTP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def agent() -> Iterator[socket.socket]:
    """An agent at the default socket."""
    default_socket().parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(default_socket()))
        listener.listen()
        yield listener


def test_flags_beat_the_environment_name_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """KNOT_SERVER beats KNOT_URL, a flag beats both, and the token is looked for by itself."""
    assert not given()
    monkeypatch.setenv("KNOT_URL", "http://url")
    assert given() == Given("http://url", None)
    monkeypatch.setenv("KNOT_SERVER", "http://server")
    monkeypatch.setenv("KNOT_TOKEN", "token")
    assert given() == Given("http://server", "token")
    assert given("http://flag") == Given("http://flag", "token")


def test_the_agent_at_the_default_socket_serves(agent: socket.socket) -> None:
    """Where nothing is said, an agent that answers is the door; its connection is closed at the end."""
    with open_ports(given()) as ports:
        assert isinstance(ports, PortsOfAgent)
        connection, _ = agent.accept()
    with connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("said", [Given(URL, "token"), Given(server=URL), Given(token="token")])
def test_a_server_or_token_beats_the_default_socket(agent: socket.socket, said: Given) -> None:
    """Who gives either means the server, which the other may be kept for."""
    keep(URL, "kept")
    with open_ports(said) as ports:
        assert isinstance(ports, PortsOfServer)


def test_a_named_socket_beats_all(agent: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """KNOT_AGENT_SOCKET is the door whatever else is said, and no other is taken where nobody answers there."""
    monkeypatch.setenv("KNOT_AGENT_SOCKET", str(default_socket()))
    with open_ports(Given(URL, "token")) as ports:
        assert isinstance(ports, PortsOfAgent)
    monkeypatch.setenv("KNOT_AGENT_SOCKET", str(tmp_path / "none"))
    with pytest.raises(Unavailable), open_ports(Given(URL, "token")):
        pass


def test_a_socket_that_was_left_behind(agent: socket.socket) -> None:
    """An agent that is gone leaves the way to the server that is kept; where there is none, it is what is complained about."""
    agent.close()
    with pytest.raises(Unavailable, match="no agent answers"), open_ports(given()):
        pass
    keep(URL, "kept")
    with open_ports(given()) as ports:
        assert isinstance(ports, PortsOfServer)


def test_what_is_missing_is_said() -> None:
    """No server; no token; a kept token that is for another server."""
    with pytest.raises(BadInput, match="knot login"):
        api(Given())
    with pytest.raises(NotAuthenticated):
        api(Given(server=URL))
    keep(URL, "kept")
    with pytest.raises(NotAuthenticated, match=f"is for {URL}"):
        api(Given(server="https://other.example.com"))


def test_settings_are_read_strictly() -> None:
    """What others can read is refused, and so is what is not known."""
    path = keep(URL, "kept")
    assert path == config_file()
    path.chmod(0o644)
    with pytest.raises(LooseFile):
        api(Given())
    path.chmod(0o600)
    path.write_text("servr: x\n")
    with pytest.raises(BadInput, match=r"config\.yaml:1: servr"):
        api(Given())


def test_what_is_kept_can_be_asked_for() -> None:
    """Which server would be asked, and for which one a login is kept, can be known beforehand."""
    assert chosen_server(Given()) is None
    assert not keeps_login(URL)
    keep(URL, "t")
    assert chosen_server(Given()) == URL
    assert chosen_server(Given("http://127.0.0.1:3000/")) == "http://127.0.0.1:3000"
    assert keeps_login(URL + "/")
    assert not keeps_login("http://127.0.0.1:3000")


def test_how_the_server_is_known_is_kept_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kept CA file and a kept word about plain HTTP are for the kept server alone; the environment's are for any."""
    plain, other = "http://10.0.0.5:3000", "http://10.0.0.6:3000"
    keep(plain, "kept", Trust(allow_plain_http=True))
    api(Given()).close()
    with pytest.raises(BadInput, match="no https"):
        api(Given(server=other, token="t"))
    monkeypatch.setenv("KNOT_ALLOW_PLAIN_HTTP", "1")
    api(Given(server=other, token="t")).close()
    keep(URL, "kept", Trust(tmp_path / "gone.pem"))
    with pytest.raises(BadInput, match=r"gone\.pem"):
        api(Given())
    api(Given(server="https://other.example.com", token="t")).close()
    monkeypatch.setenv("KNOT_CA_FILE", str(tmp_path / "lost.pem"))
    for said in (Given(), Given(server="https://other.example.com", token="t")):
        with pytest.raises(BadInput, match=r"lost\.pem"):
            api(said)


@pytest.mark.parametrize("word", ["", "0", "no", "false", "2"])
def test_only_a_yes_allows_plain_http(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Anything but a clear yes in the variable is a no."""
    monkeypatch.setenv("KNOT_ALLOW_PLAIN_HTTP", word)
    with pytest.raises(BadInput, match="no https"):
        api(Given("http://10.0.0.5:3000", "t"))
