"""The agent's settings."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest

from knot_agent.settings import DEFAULT_ALLOW, DEFAULT_LISTEN, AgentSettings
from knot_ssh.addresses import Address
from knot_ssh.errors import BadInput
from knot_ssh.yamlfile import parse_yaml


def read(text: str) -> AgentSettings:
    """Settings from YAML, as the agent reads them."""
    return parse_yaml(text, AgentSettings, "agent.yaml")


def test_defaults() -> None:
    """Without a file, channels go to loopback alone, and nobody else may use the socket."""
    settings = read("")
    assert settings.allow == DEFAULT_ALLOW == ["127.0.0.1", "::1"]
    assert (settings.server, settings.listen, settings.advertise) == (None, None, None)
    assert (settings.connect_timeout, settings.socket_users, settings.socket_group) == (10, [], None)


def test_default_address_is_one() -> None:
    """The default listening address can be parsed, and is on every interface."""
    assert Address.parse(DEFAULT_LISTEN) == Address("0.0.0.0", 2022)


def test_whole_file() -> None:
    """Every setting is read, and addresses come in one spelling."""
    me, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(0).gr_name
    settings = read(
        f"""
        server: knot.example.com:2222
        listen: "[::]:2022"
        advertise: [10.0.0.7:2022, "[fd00::7]:2022"]
        allow: [127.0.0.1, "0:0:0:0:0:0:0:1", 10.0.0.9]
        connect_timeout: 2.5
        data_plane: stock
        ciphers: [aes256-ctr]
        post_quantum_only: true
        rekey_bytes: 3000000
        polling: 0
        max_channels: 7
        max_in_flight: 2000000
        max_small_packets: 500
        strict: true
        revocation_max_age: 60
        max_unauthenticated: 100
        login_timeout: 5
        login_tries: 2
        max_connection_rate: 50
        max_key_exchange_rate: 20
        max_peer_connections: 9
        max_peer_channels: 11
        max_open_rate: 30
        socket_users: [{me}]
        socket_group: {group}
        """
    )
    assert settings.model_dump() == {
        "server": "knot.example.com:2222",
        "listen": "[::]:2022",
        "advertise": ["10.0.0.7:2022", "[fd00::7]:2022"],
        "allow": ["127.0.0.1", "::1", "10.0.0.9"],
        "connect_timeout": 2.5,
        "data_plane": "stock",
        "ciphers": ["aes256-ctr"],
        "post_quantum_only": True,
        "rekey_bytes": 3000000,
        "polling": 0,
        "max_channels": 7,
        "max_in_flight": 2000000,
        "max_small_packets": 500,
        "strict": True,
        "revocation_max_age": 60,
        "max_unauthenticated": 100,
        "login_timeout": 5,
        "login_tries": 2,
        "max_connection_rate": 50,
        "max_key_exchange_rate": 20,
        "max_peer_connections": 9,
        "max_peer_channels": 11,
        "max_open_rate": 30,
        "socket_users": [me],
        "socket_group": group,
    }


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("serfer: a:1", "agent.yaml:1: serfer: "),
        ("server: knot.example.com", "agent.yaml:1: server: address 'knot.example.com' is not host:port"),
        ("listen: 2022", "agent.yaml:1: listen: "),
        ("\nlisten: 0.0.0.0:99999", "agent.yaml:2: listen: "),
        ("advertise: []", "agent.yaml:1: advertise: "),
        ("advertise: 10.0.0.7:2022", "agent.yaml:1: advertise: "),
        ("advertise:\n- 10.0.0.7:2022\n- nonsense", "agent.yaml:3: advertise.1: "),
        ("advertise: [" + "a:1," * 17 + "]", "agent.yaml:1: advertise: "),
        ("allow: [localhost]", "agent.yaml:1: allow.0: 'localhost' is not an IP address; names are not allowed here"),
        ("allow: [127.1]", "agent.yaml:1: allow.0: "),
        ("allow: ['0x7f.1']", "agent.yaml:1: allow.0: "),
        ("allow: [10.0.0.0/8]", "agent.yaml:1: allow.0: "),
        ("allow: [2130706433]", "agent.yaml:1: allow.0: "),
        ("allow: ['*']", "agent.yaml:1: allow.0: "),
        ("allow: 127.0.0.1", "agent.yaml:1: allow: "),
        ("allow: null", "agent.yaml:1: allow: "),
        ("connect_timeout: 0", "agent.yaml:1: connect_timeout: "),
        ("connect_timeout: -1", "agent.yaml:1: connect_timeout: "),
        ("connect_timeout: 301", "agent.yaml:1: connect_timeout: "),
        ("connect_timeout: .nan", "agent.yaml:1: connect_timeout: "),
        ("connect_timeout: .inf", "agent.yaml:1: connect_timeout: "),
        ("connect_timeout: soon", "agent.yaml:1: connect_timeout: "),
        ("socket_users: [no-such-user-here]", "agent.yaml:1: socket_users.0: there is no user 'no-such-user-here'"),
        ("socket_group: no-such-group-here", "agent.yaml:1: socket_group: there is no group 'no-such-group-here'"),
    ],
)
def test_refused(text: str, start: str) -> None:
    """A setting that makes no sense is refused with its line and the reason."""
    with pytest.raises(BadInput) as caught:
        read(text)
    assert str(caught.value).startswith(start)


def test_empty_allow_list() -> None:
    """An endpoint may be told to let nothing through."""
    assert read("allow: []").allow == []


@pytest.mark.parametrize("name", AgentSettings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    """Every setting has its sentence."""
    description: Any = AgentSettings.model_fields[name].description
    assert description.endswith(".")
