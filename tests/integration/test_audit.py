"""The audit record of a real system: each act stands there once, with who did it, and stays there."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import load_key
from tests.support.configured import ConfiguredAgent
from tests.support.rawhub import RawHub
from tests.support.rawssh import Denied, Opened, Refused
from tests.support.services import free_port
from tests.support.system import AgentOf, System, knot_command, running_system
from tests.support.waiting import until

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 20
HEAD = {"id", "at", "event", "actor", "owner", "space", "space_id"}
Record = dict[str, Any]


def read(system: System, *words: str, user: str = "admin") -> list[Record]:
    """What `knot audit` says."""
    return [json.loads(line) for line in system.knot("audit", "--json", "--since", "1h", *words, user=user).splitlines()]


class Story:
    """A system, and what its record says since it was looked at last, but for the use of tokens."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.last = 0

    def news(self, *events: str) -> list[Record]:
        """Exactly these records are there now, in whatever order; gives them in the order of these."""
        wanted = Counter(events)

        def look() -> list[Record] | None:
            page = self.system.api("admin").get("api", "audit", query=[("after", str(self.last)), ("limit", "1000")])
            found = [record for record in page["records"] if record["event"] != "token used"]
            return found if Counter(record["event"] for record in found) >= wanted else None

        found = until(look, SECONDS, f"{events} in the record")
        assert Counter(record["event"] for record in found) == wanted, found
        self.last = max(record["id"] for record in found)
        for record in found:
            check_form(record)
        return [next(found.pop(at) for at, record in enumerate(found) if record["event"] == event) for event in events]


def documented() -> dict[str, set[str]]:
    """The fields of each event by docs/audit.md."""
    rows = re.findall(r"^\| `([a-z ]+)` \|([^|]*)\|[^|]*\|$", (DOCS / "audit.md").read_text(), re.MULTILINE)
    return {event: set(re.findall(r"`([a-z_]+)`", fields)) for event, fields in rows}


def check_form(record: Record) -> None:
    """A record has the fields that all have, and beside them those that are documented for its event, and no others."""
    assert record.keys() >= HEAD
    assert record.keys() - HEAD <= documented()[record["event"]], record
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", record["at"])


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("audit")) as system:
        yield system


@pytest.fixture
def story(system: System) -> Story:
    """From now on."""
    system.user("alice")
    system.user("bob")
    story = Story(system)
    page = system.api("admin").get("api", "audit")
    story.last = page["last"]
    return story


@pytest.fixture(scope="module")
def spaces(system: System) -> tuple[AgentOf, AgentOf]:
    """alice's frontend and backend-api."""
    return system.space("frontend"), system.space("backend-api")


# Each act, once


def test_users_spaces_and_tokens(story: Story) -> None:
    """Making a user, a space and a token, renaming and deleting: one record each, that says who and whose."""
    system = story.system
    system.user("carol")
    made, token = story.news("user made", "token made")
    assert (made["actor"], made["owner"], made["admin"]) == ("admin", "carol", False)
    assert token["token"] in system.tokens["carol"]
    assert made["address"] == "127.0.0.1"
    assert made["by_token"] in system.tokens["admin"]

    space = system.api("carol").post("api", "spaces", body={"name": "web", "zone": "eu"})
    made, token = story.news("space made", "token made")
    assert (made["actor"], made["owner"], made["space"], made["space_id"]) == ("carol", "carol", "web", space["id"])
    assert (token["kind"], token["reusable"]) == ("join", False)
    assert space["join_token"] not in json.dumps([made, token])

    system.knot("space", "rename", "web", "www", user="carol")
    [changed] = story.news("space changed")
    assert (changed["before"], changed["space"], changed["space_id"]) == ("web", "www", space["id"])
    system.knot("space", "delete", "www", user="carol")
    [gone] = story.news("space deleted")
    assert (gone["space"], gone["space_id"]) == ("www", space["id"])
    system.knot("user", "delete", "carol", user="admin")
    [gone] = story.news("user deleted")
    assert (gone["actor"], gone["owner"]) == ("admin", "carol")


def test_joining(story: Story) -> None:
    """An agent joins: one record, and one for each of its two certificates, whose serials are those that were made. A second
    try with the same token from elsewhere is refused, for its owner to see."""
    system = story.system
    made = system.api("alice").post("api", "spaces", body={"name": "joins", "zone": "eu"})
    story.news("space made", "token made")
    agent = AgentOf(system, "joins", "alice", made["id"])
    agent.start(made["join_token"])
    joined, client, host = story.news("joined", "certificate issued", "certificate issued")
    assert (joined["actor"], joined["address"], joined["replaced"]) == ("agent joins", "127.0.0.1", False)
    assert {client["kind"], host["kind"]} == {"agent", "host"}
    certificate = read_certificate(agent.identity()[1].read_text())
    assert str(certificate._serial) in {client["serial"], host["serial"]}
    assert client["seconds"] == 3600

    thief = AgentOf(system, "thief", "alice", made["id"])
    assert thief.start_without_waiting(made["join_token"]).wait() == 1
    [refused] = story.news("refused")
    assert (refused["door"], refused["reason"], refused["owner"]) == ("join", "token refused", "alice")
    assert "used already" in refused["detail"]
    agent.stop()


def test_forwards(spaces: tuple[AgentOf, AgentOf], story: Story) -> None:
    """A forward is made, its link opened, it is replaced, stored, stopped: one record each, with who asked, and by which door.
    The link's says by which certificate, as the target's agent saw it."""
    frontend, _ = spaces
    port = free_port()
    frontend.knot("port", "forward", str(port), "backend-api", "3000")
    made, link = story.news("forward made", "link opened")
    assert (made["actor"], made["by"], made["space"], made["target"]) == (
        "agent frontend",
        "command",
        "frontend",
        "backend-api",
    )
    assert (made["local_port"], made["remote_port"], made["persistent"]) == (port, 3000, False)
    assert "replaced" not in made
    serial = str(read_certificate(frontend.identity()[1].read_text())._serial)
    assert (link["space"], link["serial"], link["source_id"]) == ("backend-api", serial, frontend.id)
    assert (link["actor"], link["mode"], link["reported"]) == ("agent frontend", "direct", True)

    story.system.knot("port", "forward", "frontend", str(port), "backend-api", "3001", "-p", user="alice")
    [made] = story.news("forward made")
    assert (made["actor"], made["by"], made["replaced"]) == ("alice", "api", "backend-api:3000")
    story.system.knot("port", "stop", "frontend", str(port), user="alice")
    [stopped] = story.news("forward stopped")
    assert (stopped["actor"], stopped["persistent"], stopped["remote_port"]) == ("alice", True, 3001)


def test_forwards_all_at_once(spaces: tuple[AgentOf, AgentOf], story: Story) -> None:
    """`apply` leaves a record for each forward that it made or stopped, and none where nothing changed or for a dry run."""
    api, port, other = story.system.api("alice"), free_port(), free_port()

    def apply(*ports: int, dry_run: bool = False) -> None:
        forwards = [{"local_port": each, "space": "backend-api", "remote_port": 3000} for each in ports]
        api.post("space-io", "frontend", "port", "apply", body={"forwards": forwards, "dry_run": dry_run})

    apply(port, dry_run=True)
    apply(port)
    made, _ = story.news("forward made", "link opened")
    assert (made["apply"], made["by"], made["local_port"]) == (True, "api", port)
    apply(port)
    apply(other)
    made, stopped = story.news("forward made", "forward stopped")
    assert (made["local_port"], stopped["local_port"]) == (other, port)
    apply()
    [stopped] = story.news("forward stopped")
    assert stopped["apply"] is True


def test_forwards_of_the_file(spaces: tuple[AgentOf, AgentOf], story: Story, tmp_path: Path) -> None:
    """What the agent's settings file makes and stops is reported by the agent, once, and not again when it is started anew."""
    port = free_port()
    entry = {"local_port": port, "space": "backend-api", "remote_port": 3000}
    agent = ConfiguredAgent(story.system, "filed", "alice", {"forwards": [entry]}, tmp_path)
    agent.start()
    joining = ("space made", "token made", "joined", "certificate issued", "certificate issued")
    *_, made, _ = story.news(*joining, "forward made", "link opened")
    assert (made["by"], made["actor"], made["reported"], made["local_port"]) == ("file", "agent filed", True, port)
    agent.stop()
    agent.start()
    story.news("link opened")
    agent.rewrite("forwards: []\n")
    [stopped] = story.news("forward stopped")
    assert (stopped["by"], stopped["target"]) == ("file", "backend-api")
    agent.stop()


def test_certificates_of_people(spaces: tuple[AgentOf, AgentOf], story: Story, tmp_path: Path) -> None:
    """A person's certificate, and what they reach with it through the hub: the endpoint sees the same serial."""
    system = story.system
    key = system.certificate("alice", tmp_path)
    [issued] = story.news("certificate issued")
    assert (issued["actor"], issued["kind"]) == ("alice", "person")
    certificate = read_certificate(key.with_name(key.name + "-cert.pub").read_text())
    with RawHub.enter(system, load_key(key), "whoever", certificate) as peer:
        assert isinstance(peer.relayed("backend-api"), Opened)
        [relayed] = story.news("connection relayed")
        assert (relayed["actor"], relayed["serial"], relayed["space"]) == ("alice", issued["serial"], "backend-api")
        assert isinstance(peer.relayed("nowhere\x1b[2J\n\u202e"), Refused)
        [refused] = story.news("refused")
        assert (refused["door"], refused["reason"], refused["actor"]) == ("relay", "not reachable", "alice")
        assert refused["host"] == "nowhere\x1b[2J\n\u202e"


def ssh(system: System, key: Path, agent: AgentOf, destination: str) -> None:
    """Log in to an endpoint with stock ssh, and ask for a channel."""
    host, port = agent.endpoint()
    command = ["ssh", "-F", "none", "-i", str(key), "-o", f"CertificateFile={key}-cert.pub", "-o", "IdentitiesOnly=yes"]
    command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    command += ["-p", str(port), "-W", destination, f"knot@{host}"]
    done = subprocess.run(command, env=system.environment({}), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode != 0


def test_refusals_of_an_endpoint(spaces: tuple[AgentOf, AgentOf], story: Story, tmp_path: Path) -> None:
    """An endpoint refuses another owner's certificate, and a channel off its loopback: the owner sees which certificate, from
    where, what for and why, once each."""
    system, (_, backend) = story.system, spaces
    system.space("bobs", owner="bob", run=False)
    bobs, alices = system.certificate("bob", tmp_path), system.certificate("alice", tmp_path)
    *_, issued = story.news("space made", "token made", "certificate issued", "certificate issued")
    ssh(system, bobs, backend, "127.0.0.1:1")
    [refused] = story.news("refused")
    assert (refused["door"], refused["reason"], refused["owner"]) == ("endpoint", "other owner or zone", "alice")
    assert (refused["space"], refused["reported"], refused["actor"]) == ("backend-api", True, "a stranger")
    ssh(system, alices, backend, "10.0.0.1:80")
    link, refused = story.news("link opened", "refused")
    assert (link["actor"], link["serial"]) == ("alice", issued["serial"])
    assert (refused["door"], refused["reason"]) == ("channel", "address not allowed")
    assert (refused["host"], refused["port"], refused["serial"]) == ("10.0.0.1", 80, issued["serial"])
    assert {record["id"] for record in read(system, "--event", "refused", user="alice")} >= {refused["id"]}
    assert not any(record["owner"] != "bob" for record in read(system, user="bob"))


def test_refusals_of_the_hub(spaces: tuple[AgentOf, AgentOf], story: Story) -> None:
    """A login under a space's id with another key is refused: its owner sees from where, and no word of it holds a secret."""
    _, backend = spaces
    other = load_key(story.system.folder / "server" / "hub_key")
    with contextlib.suppress(Denied):
        RawHub.enter(story.system, other, backend.id).close()
    [refused] = story.news("refused")
    assert (refused["door"], refused["reason"], refused["owner"]) == ("login", "not the enrolled key", "alice")
    assert refused["address"] == "127.0.0.1"


def test_refusals_over_http(story: Story) -> None:
    """No token, a wrong one, and a right that is missing: refused with the code, where from and what for, and no token."""
    system = story.system
    wrong = system.user("alice")[:-1] + "x"
    assert urllib3.request("GET", system.url + "/api/spaces").status == 401
    bearer = {"Authorization": f"Bearer {wrong}"}
    assert urllib3.request("GET", system.url + "/api/spaces?token=secret", headers=bearer).status == 400
    assert urllib3.request("GET", system.url + "/api/spaces", headers=bearer).status == 401
    system.knot("user", "create", "dave", user="bob", code=1)
    nobody, other, bob = story.news("refused", "refused", "refused")
    for refused in (nobody, other):
        assert (refused["actor"], refused["reason"]) == ("a stranger", "not_authenticated")
        assert (refused["method"], refused["path"]) == ("GET", "/api/spaces")
    assert (bob["actor"], bob["reason"], bob["path"]) == ("bob", "forbidden", "/api/users")
    assert wrong not in json.dumps([nobody, other, bob])


def test_use_of_tokens(story: Story) -> None:
    """A token that is used from an address is recorded once in an hour, however often it is used."""
    system = story.system
    for _ in range(5):
        system.api("bob").get("api", "spaces")
    used = until(lambda: read(system, "--event", "token-used", "--user", "bob"), SECONDS)
    assert [(record["actor"], record["address"]) for record in used] == [("bob", "127.0.0.1")]
    assert used[0]["by_token"] in system.tokens["bob"]
    check_form(used[0])


# How it is read


def test_rights(story: Story) -> None:
    """Everybody sees what concerns them alone; a space of others is not told apart from none."""
    system = story.system
    own = read(system, user="bob")
    assert own
    assert {record["owner"] for record in own} == {"bob"}
    assert "there is no space 'frontend' of yours" in system.knot("audit", "--space", "frontend", user="bob", code=1)
    assert read(system, "--user", "alice", user="bob") == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "after=-1", "event=nonsense", "since=yesterday", "space=a/b", "user=A", "colour=red"],
)
def test_bad_queries(system: System, query: str) -> None:
    """What the query does not know, or what makes no sense there, is refused with a line that names it."""
    bearer = {"Authorization": f"Bearer {system.user('admin')}"}
    answer = urllib3.request("GET", f"{system.url}/api/audit?{query}", headers=bearer)
    assert answer.status == 400
    assert query.partition("=")[0] in answer.json()["error"]


def test_wrong_usage(system: System) -> None:
    """A moment that is none, and an event that there is not, are wrong usage; the server names those that there are."""
    assert "neither a time ago" in system.knot("audit", "--since", "soon", user="admin", code=2)
    assert "event" in system.knot("audit", "--event", "nonsense", user="admin", code=2)


@contextlib.contextmanager
def following(system: System, *words: str, user: str = "admin") -> Iterator[subprocess.Popen[bytes]]:
    command = knot_command("audit", "--follow", *words)
    process = subprocess.Popen(command, env=system.as_user(user), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_following(system: System, tmp_path: Path) -> None:
    """`--follow` prints what there is, then what comes, a line a record; Ctrl-C ends it with exit code 0."""
    system.user("erin")
    with following(system, "--json", "--user", "erin", "--event", "space-made", "--event", "user-made") as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["event"] == "user made"
        system.knot("space", "create", "later", "--zone", "eu", user="erin")
        record = json.loads(process.stdout.readline())
        assert (record["event"], record["space"]) == ("space made", "later")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert process.stderr
        assert process.stderr.read() == b""


def test_following_ends_with_its_reader(system: System) -> None:
    """`knot audit --follow | head -1` ends."""
    with following(system) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(SECONDS) == 0
        process.stdout = None


def test_hostile_words_stay_in_their_line(system: System, story: Story) -> None:
    """Whatever a stranger says, a record is one line of printable ASCII, for people and as JSON."""
    host, _, port = system.http_address.partition(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(
            b"GET /space-io/%0a%1b%5b2J%e2%80%ae%7f%00%22/port/list HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        while sock.recv(4096):
            pass
    [refused] = story.news("refused")
    assert "\n\x1b[2J\u202e\x7f\x00" in refused["path"]
    records = read(system, "--event", "refused")
    for form in ([], ["--json"]):
        text = system.run("audit", "--event", "refused", "--since", "1h", *form, user="admin").stdout
        lines = text.removesuffix("\n").split("\n")
        assert len(lines) == len(records)
        assert all(line.isascii() and line.isprintable() for line in lines), lines


# How it is kept


def test_survives_a_kill(tmp_path: Path) -> None:
    """What was answered is recorded, though the server is killed in the same moment."""
    with running_system(tmp_path) as system:
        system.user("alice")
        for number in range(5):
            system.api("alice").post("api", "spaces", body={"name": f"space-{number}", "zone": "eu"})
            assert system.server
            system.server.kill()
            system.start()
        made = read(system, "--event", "space-made")
        assert [record["space"] for record in made] == [f"space-{number}" for number in range(5)]
