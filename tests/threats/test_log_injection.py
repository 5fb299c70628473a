"""Somebody remote who writes into the log through names, hosts and certificates: a record stays one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from asyncssh.constants import MSG_CHANNEL_OPEN
from asyncssh.packet import String, UInt32

from tests.conftest import Pair
from tests.faults.beds import start_agent
from tests.support.figures import Figure
from tests.support.forgery import Forge, own_ca, signed
from tests.support.rawhub import RawHub
from tests.support.rawssh import ENOUGH, PACKET, Denied, RawSSH, Refused
from tests.support.system import Running
from tests.support.waiting import until

FAKE = "2024-01-01T00:00:00.000000Z info     joined space=evil"
HOSTILE = [
    f"x\n{FAKE}", f"x\r\n{FAKE}", f"x\x1b[2J\x1b[1;1H{FAKE}", "x\0y", "\u2028\u2029\u202e\x85x", 'a" b="c', "a=b reason=none",
    "x" * 300,
]  # fmt: skip
"""Fewer than may be logged at once."""


def new_lines(running: Running, before: int, count: int) -> list[str]:
    """What was logged since; waits for so many lines."""
    until(lambda: len(raw(running)) >= before + count, what=f"{count} more lines")
    return raw(running)[before:]


def raw(running: Running) -> list[str]:
    """Lines as a reader of the file sees them, who knows of newlines alone."""
    return running.log.read_bytes().decode("utf-8", "backslashreplace").split("\n")[:-1]


def sound(lines: list[str]) -> bool:
    """Whether each is a record of ours, in plain characters, and none is the one that was to be put in."""
    record = re.compile(r"\A\S+ (info|warning|error)\b")
    return all(
        record.match(line) and line.isascii() and line.isprintable() and not line.startswith(FAKE[:10]) for line in lines
    )


@pytest.mark.threat(18, "hosts of channels to an endpoint with newlines, ESC, NUL, quotes", "line count = event count")
def test_hosts_of_channels(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """Each refusal is one line."""
    agent = start_agent(pair.system, "logging", {})
    assert agent.running
    before = len(raw(agent.running))
    with RawSSH.login(agent.endpoint(), pair.system.certificate("alice", tmp_path)) as peer:
        for host in HOSTILE:
            where = String(host) + UInt32(22) + String(host) + UInt32(1)
            peer.send(MSG_CHANNEL_OPEN, String("direct-tcpip"), UInt32(peer.number()), UInt32(ENOUGH), UInt32(PACKET), where)
            assert isinstance(peer.answer(), Refused)
    lines = new_lines(agent.running, before, len(HOSTILE))
    figure(f"{len(HOSTILE)} events, {len(lines)} lines")
    assert len(lines) == len(HOSTILE)
    assert sound(lines)


@pytest.mark.threat(18, "names that an agent asks the hub to be relayed to under", "line count = event count")
def test_names_at_the_hub(pair: Pair, figure: Figure) -> None:
    """Each refusal is one line."""
    agent = pair.system.space("logged")
    agent.stop()
    assert pair.system.server
    before = len(raw(pair.system.server))
    for host in HOSTILE:
        with RawHub.member(agent) as far:
            assert not far.register(host)
    lines = [line for line in new_lines(pair.system.server, before, len(HOSTILE)) if "relaying not registered" in line]
    figure(f"{len(HOSTILE)} events, {len(lines)} lines")
    assert len(lines) == len(HOSTILE)
    assert sound(raw(pair.system.server)[before:])


@pytest.mark.threat(18, "key ids and principals of certificates, login names", "line count = event count")
def test_certificates(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """What a certificate says of itself, by a CA of one's own, is one line for each refusal."""
    agent = start_agent(pair.system, "logging-2", {})
    assert agent.running
    before = len(raw(agent.running))
    texts = [text for text in HOSTILE if "\0" not in text]
    for number, text in enumerate(texts):
        folder = tmp_path / str(number)
        folder.mkdir()
        key = signed(key_id=text, principals=text.replace(",", ""), ca=own_ca)(Forge(pair.system, folder))
        with pytest.raises(Denied):
            RawSSH.login(agent.endpoint(), key)
    lines = new_lines(agent.running, before, len(texts))
    figure(f"{len(texts)} events, {len(lines)} lines")
    assert len(lines) == len(texts)
    assert sound(lines)
