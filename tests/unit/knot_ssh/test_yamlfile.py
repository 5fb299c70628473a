"""YAML is read strictly, and an error says where."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from knot_ssh.errors import BadInput
from knot_ssh.names import Port
from knot_ssh.yamlfile import Document, load_yaml, parse_yaml


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    port: Port
    name: str = "x"


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    server: str | None = None
    wait: float = 1.0
    items: list[Item] = Field(default=[], max_length=2)


def refused(text: str) -> str:
    """What is said of this file."""
    with pytest.raises(BadInput) as caught:
        parse_yaml(text, Settings, "f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def verdict(text: str) -> str:
    """What is said of this file, whatever it is."""
    try:
        parse_yaml(text, Settings, "f.yaml")
    except BadInput as error:
        return str(error)
    return "fine"


def test_values() -> None:
    """Values arrive as the model has them."""
    text = "server: knot.example.com:2222\nwait: 2\nitems:\n  - {port: 80, name: web}\n  - port: 81\n"
    settings = parse_yaml(text, Settings, "f.yaml")
    assert settings == Settings(
        server="knot.example.com:2222", wait=2.0, items=[Item(port=Port(80), name="web"), Item(port=Port(81))]
    )


@pytest.mark.parametrize("text", ["", "\n", "# only this\n", "---\n", "{}"])
def test_nothing_means_the_defaults(text: str) -> None:
    """An empty file is a file in which nothing was changed."""
    assert parse_yaml(text, Settings, "f.yaml") == Settings()


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("server: a\nsurprise: 1\n", "f.yaml:2: surprise: "),
        ("server: a\nserver: b\n", "f.yaml:2: the key 'server' stands here twice"),
        ("server: a\n\nitems:\n- port: 80\n- port: 81\n  color: red\n", "f.yaml:6: items.1.color: "),
        ("items:\n- port: 80\n- port: 0\n", "f.yaml:3: items.1.port: "),
        ("items:\n- port: 80\n  port: 81\n", "f.yaml:3: the key 'port' stands here twice"),
        ("items:\n- port: 80\n- name: x\n", "f.yaml:3: items.1.port: is missing"),
        ("items:\n- {prot: 80}\n", "f.yaml:2: items.0.prot: is not known here"),
        ("\n\nitems: 7\n", "f.yaml:3: items: "),
        ("server:\n  a: 1\n", "f.yaml:1: server: "),
        ("items:\n- port: 1\n- port: 2\n- port: 3\n", "f.yaml:1: items: "),
        ("- a\n", "f.yaml:1: "),
        ("\njust words\n", "f.yaml:2: "),
        ("server: a\n  wait: b\n", "f.yaml:2: "),
        ("server: [a\n", "f.yaml:2: "),
        ("server: a\n\twait: 1\n", "f.yaml:2: "),
        ("a: &x 1\nb: *x\n", "f.yaml:2: aliases are not used here"),
        ("? [a]\n: b\n", "f.yaml:1: a key must be a plain word"),
        ("--- {}\n--- {}\n", "f.yaml:2: "),
        ("server: a\nwait: !!python/object/apply:os.system [id]\n", "f.yaml:2: "),
        ("server: a\nwait: 2001-99-99\n", "f.yaml:2: "),
        ("server: a\nwait: !!int x\n", "f.yaml:2: "),
        ("server: a\nwait: 0x\n", "f.yaml:2: "),
        ("server: a\n<<: {wait: 2}\n", "f.yaml:2: <<: "),
        ("server: a\nwait: \0\n", "f.yaml:"),
        ('server: a\nwait: "\\U00110000"\n', "f.yaml:2: a number that is too large"),
        ('server: a\nwait: "\\Uffffffff"\n', "f.yaml:2: a number that is too large"),
        (f"%YAML 1.{'1' * 5000}\n--- {{}}\n", "f.yaml:1: a number that is too large"),
    ],
)  # fmt: skip
def test_refusal_names_the_line(text: str, start: str) -> None:
    """What is refused is refused with file, line and reason, on one line."""
    assert refused(text).startswith(start)


def test_small_file_does_not_unfold() -> None:
    """A file whose aliases would unfold into billions of values is refused at once."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    started = time.monotonic()
    assert "aliases are not used here" in refused(bomb)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("text", ["[" * 17 + "]" * 17, "[" * 5000, "{a: " * 5000, "items: " + "[" * 5000 + "]" * 5000])
def test_deep_nesting_is_refused(text: str) -> None:
    """A file nested beyond reason is refused, not followed until the stack ends."""
    assert refused(text).startswith("f.yaml:")


def test_huge_number_is_refused() -> None:
    """A number of thousands of digits is refused, with its line."""
    assert refused("server: a\nwait: " + "9" * 5000 + "\n").startswith("f.yaml:2: ")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    """Whatever the text, it is read, or refused with file and line."""
    assert re.match(r"\Af\.yaml:[0-9]+: .+\Z|\Afine\Z", verdict(text))


def test_file_is_named(tmp_path: Path) -> None:
    """An error in a file begins with its path."""
    path = tmp_path / "agent.yaml"
    path.write_text("nonsense: 1\n")
    with pytest.raises(BadInput, match=f"^{path}:1: nonsense: "):
        load_yaml(path, Settings)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named with the reason."""
    with pytest.raises(BadInput, match=f"^cannot read {tmp_path / 'none.yaml'}: No such file"):
        load_yaml(tmp_path / "none.yaml", Settings)


def test_other_encoding(tmp_path: Path) -> None:
    """A file in another encoding than UTF-8 is refused."""
    (tmp_path / "agent.yaml").write_bytes(b"server: a\nwait: \xff\n")
    with pytest.raises(BadInput, match=f"^{tmp_path / 'agent.yaml'}:2: it is not UTF-8$"):
        load_yaml(tmp_path / "agent.yaml", Settings)


def test_parts() -> None:
    """A document can be checked in two parts, and each names the lines of the whole."""
    document = Document.parse("server: a\nother: [1]\nwait: soon\n", "f.yaml")
    assert document.only(["other"]).values == {"other": [1]}
    with pytest.raises(BadInput, match=r"^f\.yaml:3: wait: "):
        document.without(["other"]).check(Settings)
    assert str(document.error(("other", 0), "no")) == "f.yaml:2: no"


@pytest.mark.parametrize("text", ["- a\n", "words"])
def test_parts_of_what_has_none(text: str) -> None:
    """What has no keys at all is wrong in one of the parts, not in both."""
    document = Document.parse(text, "f.yaml")
    assert document.only(["items"]).check(Settings) == Settings()
    with pytest.raises(BadInput, match=r"^f\.yaml:1: must be keys with values"):
        document.without(["items"]).check(Settings)


@pytest.mark.parametrize(
    "text", ["local: !!int ''", "local: !!bool x", "local: !!timestamp x", "local: !!float ''", "local: !!binary é"]
)
def test_explicit_tags(text: str) -> None:
    """A value that is not what its tag says is an error with its line, like any other."""
    with pytest.raises(BadInput, match=r"^f\.yaml:2: "):
        Document.parse(f"a: 1\n{text}\n", "f.yaml")


def test_json_with_tabs() -> None:
    """JSON is taken however it is laid out."""
    assert Document.parse('\n{\t"a":\t[\n\t\t1,\n\t\t"b c"\n\t]\n}\n', "f.json").values == {"a": [1, "b c"]}


@pytest.mark.parametrize("text", ["010", "0x1f", "0b1", "1_000", "22:30", "+", "1e3"])
def test_numbers_are_decimal(text: str) -> None:
    """What other YAML readers take for some number is text, so that it is not taken for another number than is meant."""
    assert Document.parse(f"a: {text}", "f.yaml").values == {"a": text}


@pytest.mark.parametrize("text", ["0", "8080", "-1", "+7"])
def test_decimal_numbers(text: str) -> None:
    """A decimal number is one."""
    assert Document.parse(f"a: {text}", "f.yaml").values == {"a": int(text)}
