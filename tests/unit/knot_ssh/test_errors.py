"""Errors keep their class on the way from where they are raised to where the user reads them."""

from __future__ import annotations

import pytest

import knot_keys.certificates
import knot_keys.connections
from knot_ssh.errors import BadInput, Conflict, KnotError, NotFound, NotRunning, Unavailable, error_for

DEFINED_ELSEWHERE = (
    knot_keys.certificates.CertificateRefused,
    knot_keys.connections.WrongHost,
)


def every_class(base: type[KnotError] = KnotError) -> list[type[KnotError]]:
    """The whole hierarchy."""
    return [base, *(found for child in base.__subclasses__() for found in every_class(child))]


def test_hierarchy_is_whole() -> None:
    """The classes of all packages are in the hierarchy that the next tests walk through."""
    assert set(DEFINED_ELSEWHERE) < set(every_class())
    assert len(every_class()) > 15


def test_codes_are_unique() -> None:
    """No two errors share a code, so that a code leads back to one class."""
    codes = [error.code for error in every_class()]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("error", every_class(), ids=lambda error: error.__name__)
def test_code_gives_the_class_back(error: type[KnotError]) -> None:
    """The code turns back into the class that was raised, with its sentence."""
    received = error_for(error.code, "the sentence")
    assert (type(received), str(received)) == (error, "the sentence")


@pytest.mark.parametrize("error", every_class(), ids=lambda error: error.__name__)
def test_class_has_a_sentence_and_a_status(error: type[KnotError]) -> None:
    """Every error has one line to show by itself, a status of HTTP's error range and an exit code that is no success."""
    text = str(error())
    assert text
    assert text == " ".join(text.split())
    assert not text.endswith(".")
    assert not text[0].isupper()
    assert "\n" not in str(error())
    assert 400 <= error.http_status < 600
    assert error.exit_code in (1, 2)


@pytest.mark.parametrize("code", ["", "None", "nonsense", "__class__"])
def test_unknown_code_is_a_plain_error(code: str) -> None:
    """A code from a newer server gives the base class with the sentence, not a failure."""
    received = error_for(code, "the sentence")
    assert (type(received), str(received)) == (KnotError, "the sentence")


def test_detail_is_for_the_log_alone() -> None:
    """What is meant for the log does not show in the text."""
    error = Unavailable("try again", detail="disk I/O error")
    assert (str(error), error.detail) == ("try again", "disk I/O error")


def test_caught_by_what_it_is() -> None:
    """A special error is caught as the general one, and keeps its status."""
    assert isinstance(error_for("not_running", "x"), NotRunning.__bases__[0])
    assert error_for("not_running", "x").http_status == 409
    assert (BadInput.exit_code, NotFound.exit_code) == (2, 1)


def test_words_of_the_other_side_are_harmless() -> None:
    """A sentence from the other side can do nothing to a terminal, and is no novel."""
    error = error_for("conflict", "no\x1b]0;title\x07 \x1b[2J\nknot: all is well " + "x" * 5000)
    assert type(error) is Conflict
    assert str(error).startswith("no\\x1b]0;title\\x07 \\x1b[2J knot: all is well x")
    assert len(str(error)) < 1100
