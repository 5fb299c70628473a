"""Forwards in a file: ranges, ports that stand there twice, addresses to bind; and every error names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from knot_ssh.errors import BadInput
from knot_ssh.forwardsfile import FiledForward, check_file, filed_forwards, read_requests
from knot_ssh.names import Port, SpaceId
from knot_ssh.wire import FORWARDS_MAX, ForwardRequest
from knot_ssh.yamlfile import Document

WEB = "forwards:\n- {local_port: 8080, space: backend, remote_port: 3000}\n"
AS_MANY_AS_MAY_BE = f"1-{FORWARDS_MAX}"


def filed(text: str) -> list[FiledForward]:
    """What an agent reads."""
    return filed_forwards(Document.parse(text, "f.yaml"))


def refused(text: str) -> str:
    """What an agent says of this file; `apply` says the same."""
    with pytest.raises(BadInput) as caught:
        filed(text)
    assert "\n" not in str(caught.value)
    if "allow_remote_bind" not in str(caught.value):
        with pytest.raises(BadInput) as again:
            read_requests(text.encode(), "f.yaml")
        assert str(again.value) == str(caught.value)
    return str(caught.value)


def entries(*texts: str) -> str:
    """A file with these entries, one a line from line 2 on."""
    return "forwards:\n" + "".join(f"- {{{text}}}\n" for text in texts)


def test_both_readers() -> None:
    """The same entry is a request for `apply` and a forward of the agent's own."""
    identity = SpaceId.new()
    text = entries(
        "local_port: 8080, space: backend, remote_port: 3000, persistent: true, force: true",
        f"local_port: 81, space: {identity}, remote_port: 80",
    )
    assert read_requests(text.encode(), "f.yaml") == [
        ForwardRequest(local_port=Port(8080), space="backend", remote_port=Port(3000), persistent=True, force=True),
        ForwardRequest(local_port=Port(81), space=identity, remote_port=Port(80)),
    ]
    assert filed(text) == [
        FiledForward(local_port=Port(8080), space="backend", remote_port=Port(3000)),
        FiledForward(local_port=Port(81), space=identity, remote_port=Port(80)),
    ]


@pytest.mark.parametrize("local", ["9000-9002", "'9000-9002'"])
def test_range(local: str) -> None:
    """A range stands for single forwards, port by port."""
    found = filed(entries(f"local_port: {local}, space: backend, remote_port: 65533-65535"))
    assert [(one.local_port, one.remote_port) for one in found] == [(9000, 65533), (9001, 65534), (9002, 65535)]
    assert len(filed(entries("local_port: 7-7, space: backend, remote_port: 9"))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forwards: 7\n", "f.yaml:1: forwards: must be a list, like [a, b]"),
        ("\nforwards:\n", "f.yaml:2: forwards: must be a list, like [a, b]"),
        (entries("local_port: 1, space: a, remote_port: 1") + "- nonsense\n", "f.yaml:3: forwards.1: must be keys with values"),
        (entries("local_port: 1, space: a"), "f.yaml:2: forwards.0.remote_port: is missing"),
        (entries("local_port: 1, space: a, remote_port: 1, color: red"), "f.yaml:2: forwards.0.color: is not known here"),
        (entries("local_port: 1, space: a, remote_port: 1, local_port: 2"), "f.yaml:2: the key 'local_port' stands here twice"),
        (
            "forwards:\n- local_port: 1\n  space: Not/A Name\n  remote_port: 1\n",
            "f.yaml:3: forwards.0.space: space name 'Not/A Name' must be 1 to 63 of a-z, 0-9 and '-', with a letter or "
            "digit at both ends",
        ),
        (entries("local_port: 1, space: 7, remote_port: 1"), "f.yaml:2: forwards.0.space: must be text"),
        (entries("local_port: 1, space: a, remote_port: 1, force: 7"), "f.yaml:2: forwards.0.force: must be true or false"),
        (
            entries("local_port: 1-3, space: a, remote_port: 1-2"),
            "f.yaml:2: forwards.0: local_port and remote_port must be ranges of the same length, not of 3 and 2",
        ),
        (
            entries("local_port: 1-3, space: a, remote_port: 80"),
            "f.yaml:2: forwards.0: local_port and remote_port must be ranges of the same length, not of 3 and 1",
        ),
        (
            entries("local_port: 1, space: a, remote_port: 1", "local_port: 1, space: b, remote_port: 1"),
            "f.yaml:3: local port 1 stands on line 2 already",
        ),
        (
            entries(
                "local_port: 9005, space: a, remote_port: 1",
                "local_port: 9000-9003, space: a, remote_port: 1-4",
                "local_port: 9003-9009, space: a, remote_port: 1-7",
            ),
            "f.yaml:4: local port 9003 stands on line 3 already",
        ),
        (
            entries(f"local_port: {AS_MANY_AS_MAY_BE}, space: a, remote_port: {AS_MANY_AS_MAY_BE}")
            + "- {local_port: 3000, space: a, remote_port: 1}\n",
            f"f.yaml:3: a space may have {FORWARDS_MAX} forwards, and this is one too many",
        ),
        (
            entries("local_port: 1-65535, space: a, remote_port: 1-65535"),
            f"f.yaml:2: a space may have {FORWARDS_MAX} forwards, and this is one too many",
        ),
        (
            entries("local_port: 1, space: a, remote_port: 1, bind: localhost"),
            "f.yaml:2: forwards.0.bind: 'localhost' is not an IP address; names are not allowed here",
        ),
    ],
)  # fmt: skip
def test_refused(text: str, message: str) -> None:
    """What is wrong is said with its line, in the same words for both readers."""
    assert refused(text) == message


@pytest.mark.parametrize(
    "value", ["0", "65536", "-1", "1.5", "true", "'8080'", "80-", "-", "9-8", "0-5", "9-65536", "[1]", "a", "null"]
)
@pytest.mark.parametrize("key", ["local_port", "remote_port"])
def test_refused_ports(key: str, value: str) -> None:
    """Only a port or a range of ports is one."""
    other = {"local_port": "remote_port", "remote_port": "local_port"}[key]
    start = f"f.yaml:2: forwards.0.{key}: must be "
    assert refused(entries(f"{key}: {value}, space: a, {other}: 1")).startswith(start)


def test_bounds_agree() -> None:
    """As many forwards as a space may have can stand in a file."""
    assert len(filed(entries(f"local_port: {AS_MANY_AS_MAY_BE}, space: a, remote_port: {AS_MANY_AS_MAY_BE}"))) == FORWARDS_MAX


@pytest.mark.parametrize("address", ["0.0.0.0", "'::'", "10.0.0.7", "'fd00::7'", "127.0.0.2", "'::1'"])
def test_bind_needs_permission(address: str) -> None:
    """Any address but 127.0.0.1 needs a word at the top of the file, before or after."""
    text = entries("local_port: 80, space: a, remote_port: 1", f"local_port: 81, space: a, remote_port: 1, bind: {address}")
    assert refused(text) == (
        f"f.yaml:3: {address.strip(chr(39))} needs `allow_remote_bind: true` at the top of this file, "
        "as any address but 127.0.0.1"
    )
    assert refused(text + "allow_remote_bind: false\n").startswith("f.yaml:3: ")
    assert refused(text + "allow_remote_bind: 'true'\n") == "f.yaml:4: allow_remote_bind: must be true or false"
    assert [one.bind for one in filed(text + "allow_remote_bind: true\n")] == ["127.0.0.1", address.strip("'")]


def test_apply_has_no_bind() -> None:
    """Where a port is bound is for the agent's own file to say."""
    text = entries(
        "local_port: 80, space: a, remote_port: 1, bind: 127.0.0.1", "local_port: 81, space: a, remote_port: 1, bind: '::1'"
    )
    with pytest.raises(BadInput, match=r"^f\.yaml:3: `bind` is for the agent's own settings file alone$"):
        read_requests(text.encode(), "f.yaml")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "f.yaml:1: forwards: is missing"),
        ("{}", "f.yaml:1: forwards: is missing"),
        ("- {local_port: 1}\n", "f.yaml:1: must be keys with values"),
        (WEB + "allow_remote_bind: true\n", "f.yaml:3: allow_remote_bind: is not known here"),
        (WEB + "listen: 0.0.0.0:2022\n", "f.yaml:3: listen: is not known here"),
    ],
)
def test_apply_is_given_forwards_alone(text: str, start: str) -> None:
    """A file for `apply` holds `forwards` and nothing else; an empty one does not mean none."""
    with pytest.raises(BadInput) as caught:
        read_requests(text.encode(), "f.yaml")
    assert str(caught.value).startswith(start)


def test_none_at_all() -> None:
    """`forwards: []` means none, for both."""
    assert read_requests(b"forwards: []", "f.yaml") == []
    assert filed("forwards: []") == filed("listen: 0.0.0.0:1\n") == []


def test_checking_either_kind(tmp_path: Path) -> None:
    """One check serves the agent's settings and a bare list of forwards."""
    path = tmp_path / "some.yaml"
    path.write_text(WEB)
    assert [one.local_port for one in check_file(path)] == [8080]
    path.write_text("server: knot.example.com:2222\n" + WEB)
    assert [one.local_port for one in check_file(path)] == [8080]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("forwards:\n- {local_port: 1}\n", ":2: forwards.0.space: is missing"),
        ("listen: nonsense\n" + WEB, ":1: listen: "),
        (WEB + "surprise: 1\n", ":3: surprise: is not known here"),
        ("- a\n", ":1: must be keys with values"),
        ("forwards: [\n", ":2: "),
    ],
)
def test_checking_a_bad_file(tmp_path: Path, text: str, words: str) -> None:
    """What is wrong in either part is said with file and line."""
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"some\.yaml:") as caught:
        check_file(path)
    assert str(caught.value).startswith(f"{path}{words}")


def test_apply_names_the_line_that_is_not_text() -> None:
    """What is not UTF-8 is an error with its line."""
    with pytest.raises(BadInput, match=r"^f\.yaml:2: it is not UTF-8$"):
        read_requests(b"forwards: []\n# \xff\n", "f.yaml")


def test_check_of_an_empty_file(tmp_path: Path) -> None:
    """A file that says nothing is a mistake to `--check`, as it is to an agent that has forwards, and to `apply`."""
    path = tmp_path / "f.yaml"
    path.write_text("# nothing\n")
    with pytest.raises(BadInput, match=r"f\.yaml:1: the file is empty"):
        check_file(path)
