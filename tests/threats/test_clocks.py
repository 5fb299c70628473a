"""Agents whose clocks are wrong, from their start on or all of a sudden."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from knot_ssh.files import replace_file
from tests.conftest import Pair
from tests.faults.beds import FULL
from tests.support.figures import Figure
from tests.support.services import answering, ask, connect, echo, free_port, serving
from tests.support.system import AgentOf, Running
from tests.support.waiting import until

MINUTES, DAY = 600, 86400
SKEWS = (-DAY, -MINUTES, -45, 45, MINUTES, DAY)[:: 1 if FULL else 2]
"""Seconds that a clock is ahead."""
ENDURED = {-45, 45, MINUTES}.intersection(SKEWS)
"""Where certificates of an hour, dated back by a minute, are good all the same."""
BACK = 15
"""Seconds until all is well once the clock is right: attempts are a second apart, renewals 10 s."""


@dataclass(frozen=True, slots=True)
class Skewed:
    """An agent with a clock of its own, and a forward to it from frontend."""

    agent: AgentOf
    offset: Path
    local: int

    def set_clock(self, seconds: float) -> None:
        replace_file(self.offset, str(seconds).encode())

    def start(self, token: str = "") -> Running:
        system = self.agent.system
        command = [sys.executable, "-m", "tests.support.shifted_clock", str(self.offset), "agent", "run"]
        options = ["--data", str(self.agent.folder), "--server", system.hub, "--listen", "127.0.0.1:0"]
        env = system.environment({"KNOT_JOIN_TOKEN": token} if token else {})
        self.agent.running = Running([*command, *options], self.agent.folder.with_suffix(".log"), env)
        system.processes.append(self.agent.running)
        return self.agent.running

    def says(self, words: str, seconds: float = 20) -> str:
        assert self.agent.running
        return self.agent.running.wait_for(words, seconds)


def skewed(pair: Pair, folder: Path, seconds: int) -> Skewed:
    """A new space; its agent's clock is right at first."""
    agent = pair.system.space(f"{'behind' if seconds < 0 else 'ahead'}-{abs(seconds)}", run=False)
    agent.folder.parent.mkdir(exist_ok=True)
    made = Skewed(agent, folder / agent.name, free_port())
    made.set_clock(0)
    made.start(pair.system.knot("space", "token", agent.name, user="alice"))
    return made


@pytest.mark.threat(21, "clocks +-45 s, 10 min, 1 day: jumps", "no live stream ends")
@pytest.mark.threat(
    21, "clocks +-45 s, 10 min, 1 day: at the start", "alarm or refusal that says so; well again when set right"
)
def test_wrong_clocks(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """A jump cuts nothing; a restart with a wrong clock is told of; while that is too wrong nothing is trusted."""
    agents = {seconds: skewed(pair, tmp_path, seconds) for seconds in SKEWS}
    for one in agents.values():
        one.says("endpoint open")
    with serving(echo) as port, serving(answering(b"served")) as other:
        for one in agents.values():
            pair.frontend.knot("port", "forward", str(one.local), one.agent.name, str(port))
        live = {seconds: spoken(connect(one.local)) for seconds, one in agents.items()}
        for seconds, one in agents.items():
            one.set_clock(seconds)
        alive = [seconds for seconds, sock in live.items() if spoken(sock)]
        for one in agents.values():
            assert one.agent.running
            one.agent.running.ask()
        for sock in live.values():
            sock.close()
        for one in agents.values():
            assert one.agent.running
            assert one.agent.running.wait() == 0
            for certificate in one.agent.folder.glob("*-cert.pub"):
                certificate.unlink()  # they are to be certified anew
            one.start()
            pair.frontend.knot("port", "forward", str(one.local), one.agent.name, str(other), "--force")
        said = {seconds: one.says("clock") for seconds, one in agents.items()}
        for seconds in ENDURED:
            agents[seconds].says("endpoint open")
        served = {seconds for seconds in ENDURED if ask(agents[seconds].local) == b"served"}
        began = time.monotonic()
        for one in agents.values():
            one.set_clock(0)
        for one in agents.values():
            one.says("endpoint open")
            until(lambda one=one: ask(one.local) == b"served", BACK, "it is served")  # type: ignore[misc]
        mended = time.monotonic() - began
    alarms = sum("clock differs" in line for line in said.values())
    refusals = len(said) - alarms
    figure(f"{len(alive)} of {len(SKEWS)} streams alive; {alarms} alarms, {refusals} refusals; well after {mended:.1f} s")
    assert alive == list(SKEWS)
    assert served == ENDURED
    assert alarms == len(ENDURED)


def spoken(sock: socket.socket) -> socket.socket:
    """The same, once it has echoed."""
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    return sock
