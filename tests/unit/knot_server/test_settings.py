"""The server's settings: the same by flag, variable and file, and wrong ones refused with the place where they stand."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from knot_server.settings import PREFIX, ServerSettings, read_settings, settings_options
from knot_ssh.errors import BadInput


def read(*flags: str, file: Path | None = None, env: dict[str, str] | None = None) -> ServerSettings:
    """What a command with these flags, in this environment, makes of it."""
    found: list[ServerSettings] = []

    @click.command()
    @settings_options
    def command(**given: str) -> None:
        found.append(read_settings(file, given))

    CliRunner().invoke(command, flags, env=env, catch_exceptions=False)
    return found[0]


def test_flag_beats_variable_beats_file(tmp_path: Path) -> None:
    """What is given nearest wins, and what is given nowhere has its default."""
    file = tmp_path / "server.yaml"
    file.write_text("http: 127.0.0.1:1\nssh: 127.0.0.1:1\nurl: http://file\n")
    settings = read("--http", "127.0.0.1:3", file=file, env={PREFIX + "HTTP": "127.0.0.1:2", PREFIX + "SSH": "127.0.0.1:2"})
    assert (settings.http, settings.ssh, settings.url) == ("127.0.0.1:3", "127.0.0.1:2", "http://file")
    assert settings.certificate_lifetime == ServerSettings().certificate_lifetime


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--certificate-lifetime", "5"), "--certificate-lifetime: must be greater than or equal to 10"),
        (("--certificate-lifetime", "soon"), "--certificate-lifetime: must be a whole number"),
        (("--ssh-address", "here"), "--ssh-address: address 'here' is not host:port"),
        (("--url", "ftp://x"), "--url: 'ftp://x' is not a URL"),
    ],
)
def test_bad_flags(flags: tuple[str, ...], problem: str) -> None:
    """A wrong value is refused by the name of its flag."""
    with pytest.raises(BadInput) as caught:
        read(*flags)
    assert str(caught.value).startswith(problem)


def test_help_names_the_defaults() -> None:
    """Each flag says what holds without it, also where that is no."""

    @click.command()
    @settings_options
    def command(**_given: str) -> None: ...

    said = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "[default: 127.0.0.1:3000]" in said
    assert "without TLS: behind a proxy that speaks it. [default: false]" in said


def test_bad_file(tmp_path: Path) -> None:
    """What is wrong in the file is refused with its line."""
    file = tmp_path / "server.yaml"
    file.write_text("http: 127.0.0.1:1\nlisten: x\n")
    with pytest.raises(BadInput) as caught:
        read(file=file)
    assert str(caught.value) == f"{file}:2: listen: is not known here"
