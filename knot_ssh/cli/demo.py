"""`knot demo`: the whole system on this machine, from an empty folder to bytes crossing, with real processes.

Everything is done by the commands that a user would type; they are printed as they run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import urllib3

from knot_ssh.errors import KnotError

START_SECONDS = 30
STOP_SECONDS = 10
LOCAL_PORT = 8080
REFUSED_PORT = 9090
PAGE = "Hello from backend-api. Only spaces of the same owner and zone can read this.\n"


@click.command()
@click.option(
    "--once", is_flag=True, help="End after the tour instead of waiting for Ctrl-C: exit 0 when all went well, else 1."
)
def demo(once: bool) -> None:
    """Show a server, two spaces and a forward between them, on this machine."""
    signal.signal(signal.SIGTERM, _interrupted)
    with contextlib.ExitStack() as cleanup:
        tour = Tour(Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="knot-demo-"))), cleanup)
        with contextlib.suppress(KeyboardInterrupt) if not once else contextlib.nullcontext():
            tour.run()
            if not once:
                tour.linger()


class Tour:
    """The demo's steps, and the processes they start; all end with `cleanup`."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack) -> None:
        self._folder = folder
        self._cleanup = cleanup
        self._url = ""
        self._hub = ""
        self._tokens: dict[str, str] = {}
        self._local_port = _free_port(LOCAL_PORT)
        self._remote_port = _free_port(3000)

    def run(self) -> None:
        self._server()
        self._people()
        self._spaces()
        self._forward()
        self._refusal()

    def linger(self) -> None:
        """Say what to try, and wait for Ctrl-C."""
        click.secho("\nEverything is still running. In another terminal, try:", bold=True)
        click.echo(f"\n  curl http://127.0.0.1:{self._local_port}/\n")
        click.echo("as the developer inside the frontend space:\n")
        click.echo(f"  export KNOT_AGENT_SOCKET={self._socket('frontend')}")
        click.echo(f"  {_knot_words()} port list")
        click.echo(f"  {_knot_words()} port stop {self._local_port}\n")
        click.echo("or as alice, from her desktop:\n")
        click.echo(f"  export KNOT_SERVER={self._url} KNOT_TOKEN={self._tokens['alice']}")
        click.echo(f"  {_knot_words()} space list")
        click.echo(f"  {_knot_words()} port forward frontend {self._local_port} backend-api {self._remote_port} --persistent\n")
        click.secho("Ctrl-C ends the demo and removes it without a trace.", bold=True)
        threading.Event().wait()

    def _server(self) -> None:
        _step("1. A server", "It holds two SSH certificate authorities (one for users and agents, one for hosts) and the hub.")
        data = self._folder / "server"
        self._tokens["admin"] = self._knot("server", "init", "--data", str(data))
        line = self._start(
            "server", ["server", "run", "--data", str(data), "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0"], "server ready"
        )
        self._url, self._hub = _field(line, "url"), _field(line, "ssh")

    def _people(self) -> None:
        _step("2. Two users", "Spaces belong to users; alice and bob must not reach each other's.")
        for name in ("alice", "bob"):
            self._tokens[name] = self._knot("user", "create", name, user="admin")

    def _spaces(self) -> None:
        _step("3. Spaces and their agents", "Each agent joins with a one-time token and gets short-lived SSH certificates.")
        for name, owner in (("frontend", "alice"), ("backend-api", "alice"), ("outsider", "bob")):
            token = self._knot("space", "create", name, "--zone", "eu", user=owner)
            command = ["agent", "run", "--data", str(self._folder / name), "--server", self._hub, "--listen", "127.0.0.1:0"]
            self._start(name, command, "certified", {"KNOT_JOIN_TOKEN": token})
        self._service()
        self._knot("space", "list", user="alice")

    def _service(self) -> None:
        """What runs in backend-api: an ordinary HTTP server that listens on its loopback alone."""
        site = self._folder / "site"
        site.mkdir()
        (site / "index.html").write_text(PAGE)
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(site), str(self._remote_port)]
        _say(f"python -m http.server --bind 127.0.0.1 {self._remote_port}", "in backend-api")
        self._spawn("service", command, {})
        _wait_for_port(self._remote_port)

    def _forward(self) -> None:
        _step("4. A forward", "Made inside frontend: its own port becomes a port of backend-api.")
        inside = {"KNOT_AGENT_SOCKET": str(self._socket("frontend"))}
        self._knot(
            "port", "forward", str(self._local_port), "backend-api", str(self._remote_port), env=inside, where="in frontend"
        )
        url = f"http://127.0.0.1:{self._local_port}/"
        _say(f"curl {url}", "in frontend")
        answer = urllib3.request("GET", url, retries=False, timeout=15).data.decode()
        click.echo(answer, nl=False)
        if answer != PAGE:
            raise KnotError("the forward did not carry the page")
        self._knot("port", "list", env=inside, where="in frontend")

    def _refusal(self) -> None:
        _step(
            "5. A refusal",
            "bob's space has valid certificates of the same server, but another owner: for him alice's space does not exist.",
        )
        inside = {"KNOT_AGENT_SOCKET": str(self._socket("outsider"))}
        words = ["port", "forward", str(REFUSED_PORT), "backend-api", str(self._remote_port)]
        self._knot(*words, env=inside, where="in bob's space", refused=True)
        click.secho("\nIt works: bytes crossed, encrypted from agent to agent, and only where they may.", fg="green", bold=True)

    def _knot(
        self, *words: str, user: str = "", env: dict[str, str] | None = None, where: str = "", refused: bool = False
    ) -> str:
        """Run a command as a user would, show it, and give what it printed on stdout."""
        _say("knot " + shlex.join(words).replace(str(self._folder), "…"), where or (f"as {user}" if user else ""))
        known = {"KNOT_SERVER": self._url, "KNOT_TOKEN": self._tokens[user]} if user else {}
        result = subprocess.run(
            _knot_command(*words), env=self._environment(known | (env or {})), capture_output=True, text=True, check=False
        )
        secret = result.stdout.startswith(("knot_", "knotjoin_"))
        for text in (result.stderr, _masked(result.stdout) if secret else result.stdout):
            click.echo(text.replace(str(self._folder), "…"), nl=False)
        if (result.returncode != 0) != refused:
            raise KnotError(f"`knot {shlex.join(words)}` ended with exit code {result.returncode}")
        return result.stdout.strip()

    def _start(self, name: str, words: list[str], ready: str, env: dict[str, str] | None = None) -> str:
        """Start a long-running command; gives the line of its log that says that it is ready."""
        _say("knot " + shlex.join(words).replace(str(self._folder), "…") + " &", f"in {name}" if env else "")
        process = self._spawn(name, _knot_command(*words), env or {})
        return _wait_for_line(self._log(name), ready, process)

    def _spawn(self, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._cleanup.callback(_end, process)
        return process

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The caller's environment, less anything that would point the demo at another server or agent."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("KNOT_")}
        return ours | {"XDG_CONFIG_HOME": str(self._folder), "XDG_DATA_HOME": str(self._folder)} | extra

    def _socket(self, name: str) -> Path:
        return self._folder / name / "agent.sock"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _step(title: str, text: str) -> None:
    click.secho(f"\n{title}", bold=True)
    click.echo(text)


def _say(command: str, where: str) -> None:
    click.secho(f"\n$ {command}" + (f"    # {where}" if where else ""), fg="cyan")


def _knot_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "knot_ssh", *words]


def _knot_words() -> str:
    """How to type `knot` in another terminal."""
    beside = Path(sys.executable).with_name("knot")
    return str(beside) if beside.exists() else "knot"


def _masked(secret: str) -> str:
    return secret[:13] + "…  (a secret)\n"


def _field(line: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", line)
    if found is None:
        raise KnotError(f"the server did not say its {name}")
    return found[1]


def _free_port(preferred: int) -> int:
    """This port, or another that is free right now."""
    for number in (preferred, 0):
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", number))
            return int(sock.getsockname()[1])
    raise KnotError("no free port on 127.0.0.1")


def _ticks(process: subprocess.Popen[bytes] | None = None) -> Iterator[None]:
    """A wait with an end: yields until START_SECONDS are over or the process has ended."""
    pause = threading.Event()
    for _ in range(START_SECONDS * 20):
        yield
        if process is not None and process.poll() is not None:
            return
        pause.wait(0.05)


def _wait_for_line(log: Path, words: str, process: subprocess.Popen[bytes]) -> str:
    for _ in _ticks(process):
        for line in log.read_text(errors="replace").splitlines():
            if words in line:
                return line
    raise KnotError(f"{log.stem} did not start: {log.read_text(errors='replace')[-500:]}")


def _wait_for_port(port: int) -> None:
    for _ in _ticks():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
    raise KnotError(f"nothing answers on port {port}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to stop, and see that it does."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
