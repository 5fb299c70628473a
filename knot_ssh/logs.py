"""Logs: one record a line on stderr, `key=value`, every value escaped, whatever a peer put into it."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from knot_ssh.buckets import Bucket
from knot_ssh.words import escaped

LEVEL = logging.INFO

AT_ONCE = 10
"""Records that a peer may cause at once; then it is one a second, and the next says how many were left out."""
STRANGERS_AT_ONCE = 200
"""The same of all who try to log in together: as many as an operator reads."""


class Sparing:
    """Logs what somebody else can cause as often as they like, without letting them fill the disk."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._bucket = Bucket(1.0, at_once, time.monotonic())
        self._suppressed = 0

    def warning(self, log: Any, event: str, **fields: Any) -> None:
        """Log this, or count it as left out."""
        if not self._bucket.spend(time.monotonic()):
            self._suppressed += 1
            return
        if self._suppressed:
            fields["suppressed"] = self._suppressed
            self._suppressed = 0
        log.warning(event, **fields)


def configure_logs() -> None:
    """Send our own records and those of the libraries through one formatter. asyncssh is kept at warnings: it logs what
    peers say."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(LEVEL),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, one_line],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVEL)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns once for each write to a peer that has hung up
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns once for each request that is no HTTP
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def one_line(_logger: Any, _name: str, record: EventDict) -> str:
    """`time level event key=value …`, with every value as an escaped literal where it is not a plain word."""
    head = [record.pop("timestamp", "-"), str(record.pop("level", "-")), escaped(record.pop("event", ""), spaces=True)]
    return " ".join([*head, *(f"{key}={escaped(value)}" for key, value in sorted(record.items()))])
