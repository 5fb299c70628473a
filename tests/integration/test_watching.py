"""Commands that go on: `knot port list --watch` and `knot port stop --drain`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import Pair
from tests.support.services import connect, echo, free_port, is_refused, read_all, serving
from tests.support.system import AgentOf, knot_command
from tests.support.waiting import until

SECONDS = 20


class Command:
    """A command that runs in a space, with all it has said so far."""

    def __init__(self, agent: AgentOf, *words: str, stdout: int = subprocess.PIPE, terminal: int | None = None) -> None:
        env = agent.system.environment(agent.variables | {"TERM": "xterm", "LINES": "24", "COLUMNS": "100"})
        self.process = subprocess.Popen(knot_command(*words), env=env, stdout=stdout, stderr=subprocess.PIPE, bufsize=0)
        self.said = {"out": b"", "err": b""}
        streams = {"err": self.process.stderr.fileno() if self.process.stderr else -1}
        streams["out"] = terminal if terminal is not None else self.process.stdout.fileno() if self.process.stdout else -1
        self._threads = [threading.Thread(target=self._read, args=item) for item in streams.items()]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # the far end of a terminal has gone
            while data := os.read(descriptor, 65536):
                self.said[name] += data

    @property
    def out(self) -> str:
        return self.said["out"].decode()

    @property
    def err(self) -> str:
        return self.said["err"].decode()

    def wait_for(self, words: str, where: str = "out") -> None:
        until(lambda: words in self.said[where].decode(errors="replace"), SECONDS, f"{words!r}, not {self.said}")

    def interrupt(self) -> int:
        """Press Ctrl-C; gives the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(SECONDS)
        for thread in self._threads:
            thread.join(SECONDS)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


@contextlib.contextmanager
def typed(agent: AgentOf, *words: str) -> Iterator[Command]:
    """A command whose output goes into pipes."""
    with contextlib.closing(Command(agent, *words)) as command:
        yield command


@contextlib.contextmanager
def on_a_terminal(agent: AgentOf, *words: str) -> Iterator[Command]:
    """A command whose output goes to a terminal."""
    ours, theirs = pty.openpty()
    try:
        command = Command(agent, *words, stdout=theirs, terminal=ours)
    finally:
        os.close(theirs)
    with contextlib.closing(command):
        yield command
    os.close(ours)


@pytest.fixture(scope="module")
def agent(pair: Pair) -> AgentOf:
    return pair.system.space("watched")


@pytest.fixture
def local(agent: AgentOf) -> Iterator[str]:
    """A port of the space, which is free again afterwards."""
    port = str(free_port())
    yield port
    with contextlib.suppress(AssertionError):
        agent.knot("port", "stop", port)


def test_watch_into_a_pipe(agent: AgentOf, local: str) -> None:
    """Every change is printed at once, as a whole list; Ctrl-C ends it without a word."""
    with typed(agent, "port", "list", "--watch", "0.1") as command:
        command.wait_for("No active port forwards.\n")
        agent.knot("port", "forward", local, "backend-api", "3000")
        command.wait_for(f"Active port forwards:\n  {local} -> backend-api:3000 (direct)\n")
        agent.knot("port", "stop", local)
        until(lambda: command.out.endswith("No active port forwards.\n"), what="the last list")
        assert command.interrupt() == 0
        assert command.err == ""
        assert command.out.count("No active") == 2


def test_watch_takes_a_space_behind_it(pair: Pair, agent: AgentOf) -> None:
    """What stands behind `--watch` and is no number of seconds is the space."""
    with typed(agent, "port", "list", "--watch", "watched") as command:
        command.wait_for("No active port forwards in space 'watched'.\n")
        assert command.interrupt() == 0
    assert "--watch takes 0.1 to 3600 seconds" in agent.knot("port", "list", "--watch", "0", code=2)


def test_watch_as_json(agent: AgentOf, local: str) -> None:
    """With `--json` each change is one line."""
    with typed(agent, "port", "list", "--json", "--watch=0.1") as command:
        command.wait_for("\n")
        agent.knot("port", "forward", local, "backend-api", "3000")
        command.wait_for(f'"local_port": {local}')
        assert command.interrupt() == 0
        lists = [json.loads(line) for line in command.out.splitlines()]
    assert lists[0] == {"forwards": [], "file_error": None}
    assert [entry["local_port"] for entry in lists[-1]["forwards"]] == [int(local)]


def test_watch_ends_when_head_has_enough(agent: AgentOf) -> None:
    """`… --watch | head -n 1` ends at once, though nothing changes, and complains about nothing."""
    env = agent.system.environment(agent.variables)
    line = shlex.join(knot_command("port", "list", "--watch", "3600"))
    command = ["bash", "-o", "pipefail", "-c", f"{line} | head -n 1"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "No active port forwards.\n", "")


def test_watch_on_a_terminal(agent: AgentOf, local: str) -> None:
    """On a terminal the list stays in its place."""
    with on_a_terminal(agent, "port", "list", "--watch", "0.1") as command:
        command.wait_for("No active port forwards.")
        agent.knot("port", "forward", local, "backend-api", "3000")
        command.wait_for(f"{local} -> backend-api:3000 (direct)")
        assert command.interrupt() == 0
        screens = command.out.split("\x1b[H")
        assert len(screens) > 2
        assert [line.strip() for line in re.sub(r"\x1b\[\w", "", screens[-1]).splitlines() if line.strip()] == [
            "Active port forwards:",
            f"{local} -> backend-api:3000 (direct)",
        ]


def test_watch_outlives_the_agent(pair: Pair) -> None:
    """An agent that goes away is told of, and one that comes back is listed again."""
    agent = pair.system.space("comes-back")
    with typed(agent, "port", "list", "--watch", "0.1") as command:
        command.wait_for("No active port forwards.")
        agent.stop()
        command.wait_for("knot: no agent answers", "err")
        agent.start()
        port = str(free_port())
        agent.knot("port", "forward", port, "backend-api", "3000")
        command.wait_for(f"{port} -> backend-api:3000")
        assert command.interrupt() == 0


def test_watch_of_nobody(pair: Pair) -> None:
    """Where nobody answers in the first place, there is nothing to watch."""
    env = {"KNOT_AGENT_SOCKET": "/nowhere/agent.sock"}
    assert "no agent answers" in pair.system.knot("port", "list", "--watch", env=env, code=1)


@pytest.mark.parametrize("desktop", [False, True])
def test_drain_waits_for_open_connections(agent: AgentOf, local: str, desktop: bool) -> None:
    """`stop --drain` frees the port at once, says how many connections are open, and ends when the last has ended well."""
    source = ["watched"] if desktop else []
    with serving(echo) as port:
        agent.knot("port", "forward", local, "backend-api", str(port))
        with connect(int(local)) as first, connect(int(local)) as second:
            for sock in (first, second):
                sock.sendall(b"a")
                assert sock.recv(1) == b"a"
            with typed(agent, "port", "stop", *source, local, "--drain") as command:
                command.wait_for(f"Port {local} takes no more connections; 2 connections are still open.", "err")
                until(lambda: is_refused(int(local)), what="nobody listens")
                assert "draining, 2 open" in agent.knot("port", "list")
                for sock in (first, second):
                    assert command.process.poll() is None
                    sock.sendall(b"b")
                    sock.shutdown(1)
                    assert read_all(sock) == ("fin", b"b")
                assert command.end() == 0
                place = " in space 'watched'" if desktop else ""
                assert command.out == f"Port forward on port {local} stopped{place}.\n"
    assert agent.knot("port", "list") == "No active port forwards."


def test_drain_with_nothing_open(agent: AgentOf, local: str) -> None:
    """Where no connection is open, there is nothing to wait for."""
    agent.knot("port", "forward", local, "backend-api", "3000")
    assert agent.knot("port", "stop", local, "--drain") == f"Port forward on port {local} stopped."


def test_interrupted_drain_goes_on(agent: AgentOf, local: str) -> None:
    """Ctrl-C leaves the forward draining and says so; a plain `stop` then resets what is left."""
    with serving(echo) as port:
        agent.knot("port", "forward", local, "backend-api", str(port))
        with connect(int(local)) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            with typed(agent, "port", "stop", local, "--drain") as command:
                command.wait_for("1 connection is still open", "err")
                assert command.interrupt() == 130
                assert f"The forward on port {local} goes on draining" in command.err
                assert command.out == ""
            sock.sendall(b"b")
            assert sock.recv(1) == b"b"
            assert agent.knot("port", "stop", local) == f"Port forward on port {local} stopped."
            assert read_all(sock)[0] == "reset"
