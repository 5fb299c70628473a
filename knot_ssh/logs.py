"""Logs: one record a line on stderr, `key=value`, every value escaped, whatever a peer put into it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

LEVEL = logging.INFO


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
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def one_line(_logger: Any, _name: str, record: EventDict) -> str:
    """`time level event key=value …`, with every value as an escaped literal where it is not a plain word."""
    head = [record.pop("timestamp", "-"), str(record.pop("level", "-")), _escaped(record.pop("event", ""), spaces=True)]
    return " ".join([*head, *(f"{key}={_escaped(value)}" for key, value in sorted(record.items()))])


def _escaped(value: object, *, spaces: bool = False) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and '"' not in text and "=" not in text
    return text if plain and text and (spaces or " " not in text) else ascii(text)
