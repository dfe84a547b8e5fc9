"""Logs: a line of JSON for each event, on standard error. What was said is not in them unless it is asked for."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

LOGGER = logging.getLogger("mtsk.serving")
_FIELDS = "mtsk_fields"


class JsonFormatter(logging.Formatter):
    """Time, level, logger, event, and the fields that were given to `log`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up() -> None:
    """Sends the logs of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def log(event: str, **fields: object) -> None:
    """Notes an event, with fields that are not None."""
    given = {name: value for name, value in fields.items() if value is not None}
    LOGGER.info(event, extra={_FIELDS: given})
