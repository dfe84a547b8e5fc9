"""What a server can be told: by flags, else by the environment (`MTSK_PORT` for `--port`), else the defaults here.
No torch: the command line reads this module.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

_ENVIRONMENT = "MTSK_"
_NO_ELASTIC = "refuse new requests once the queue is full, and never read them coarser as it grows."
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Raises:
        ValueError: for a number out of range.
    """

    host: str = "127.0.0.1"
    """address to listen at; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """0 takes a free one."""
    default: str = ""
    """what the model `mtsk` stands for: auto, best or a scale; default: auto if the model was calibrated, else best."""
    elastic: Annotated[bool, arg(help=_NO_ELASTIC, help_behavior_hint="")] = True
    """read new requests coarser when the queue grows; without, they are refused once it is full."""
    target_wait_s: float = 1.0
    """predicted wait from which on new requests are read coarser."""
    max_wait_s: float = 4.0
    """predicted wait from which on new requests are refused (429)."""
    timeout_s: float = 60.0
    """the longest a request may take."""
    grace_s: float = 30.0
    """for the requests that are there when the server is stopped."""
    max_batch: int = 8
    """segments of up to 16 s that are read together, at most."""
    max_batch_s: float = 1.5
    """so long they may take one by one, as predicted, unless it is one alone: what is read is not interrupted."""
    media_workers: int = 2
    """threads that decode files and follow faces."""
    threads: int = 0
    """of the model; 0: as torch chooses."""
    max_upload_mb: float = 100.0
    """largest request, in 10^6 bytes."""
    max_duration_s: float = 3600.0
    """longest recording."""
    max_side_px: int = 3840
    """largest width or height of pictures."""
    requests_per_minute: float = 0.0
    """of one key, or of one address where there are no keys; 0: any number."""
    log_transcripts: bool = False
    """put what was said into the log."""
    api_key: tuple[str, ...] = ()
    """what clients have to send as Bearer; several are separated by commas in the environment, where they are not seen
    in the list of processes."""

    def __post_init__(self) -> None:
        positive = ("target_wait_s", "timeout_s", "max_batch", "max_batch_s", "media_workers", "max_upload_mb")
        for name in (*positive, "max_duration_s", "max_side_px"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name):g}: more than 0 is needed")
        for name in ("grace_s", "threads", "requests_per_minute"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name):g}: 0 is the least")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port}: allowed are 0 to 65535")
        if self.max_wait_s < self.target_wait_s:
            raise ValueError(f"max_wait_s {self.max_wait_s:g} is less than target_wait_s {self.target_wait_s:g}")
        if any(not key.strip() for key in self.api_key):
            raise ValueError("an empty api_key is none")

    @property
    def max_upload_bytes(self) -> int:
        """Largest request."""
        return round(self.max_upload_mb * 1e6)

    def with_environment(self, environment: Mapping[str, str]) -> Settings:
        """With the environment's values where these settings are as by default: another value goes before a variable.

        Raises:
            ValueError: naming the variable, if a value can't be read.
        """
        found: dict[str, Any] = {}
        hints = typing.get_type_hints(Settings)
        for field in dataclasses.fields(self):
            variable = _ENVIRONMENT + field.name.upper()
            text = environment.get(variable, "").strip()
            if text and getattr(self, field.name) == field.default:
                found[field.name] = _parse(variable, text, hints[field.name])
        return dataclasses.replace(self, **found)


def _parse(variable: str, text: str, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):
        return tuple(filter(None, (part.strip() for part in text.split(","))))
    if kind is bool:
        if text.lower() not in (*_YES, *_NO):
            raise ValueError(f"{variable}={text}: allowed are {', '.join((*_YES, *_NO))}")
        return text.lower() in _YES
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{variable}={text} is not a number") from None
