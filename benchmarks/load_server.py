"""A server for `benchmarks.load`, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx
import psutil

_STOP_S = 60.0


class Served:
    """`mtsk serve`, while it is needed. Its log goes to a file.

    Args:
        options: of the command.
        log: the file.

    Raises:
        RuntimeError: if it does not get ready.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        command = [sys.executable, "-m", "mtsk.cli", "serve", *options, "--port", "0"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._sink = log.open("w", encoding="utf-8")
        self.address = self._find_address()
        if not self.address:
            self._process.kill()
            raise RuntimeError(f"mtsk serve did not get ready; see {log}")
        self._rest = threading.Thread(target=self._keep_log, daemon=True)
        self._rest.start()

    def __enter__(self) -> Served:
        """It serves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._rest.join()
        self._sink.close()

    @property
    def resident_mib(self) -> float:
        """Memory of the process."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / 2**20

    @property
    def processor_s(self) -> float:
        """Seconds of processor time that it took so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def finest(self) -> str:
        """The name of the model at its finest scale."""
        from mtsk.scale import Scale

        names: list[str] = [each["id"] for each in httpx.get(f"{self.address}/v1/models").json()["data"]]
        scales = {name: Scale.parse(name.partition("@")[2]) for name in names if "@" in name}
        return max(scales, key=lambda name: scales[name].tokens_per_second)

    def _find_address(self) -> str:
        """From the log, once it listens and is ready."""
        assert self._process.stderr is not None
        address = ""
        for line in self._process.stderr:
            self._sink.write(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "listening":
                address = f"http://{event['host']}:{event['port']}"
            if address and "startup complete" in str(event.get("event")):
                return self._wait_until_ready(address)  # it listens a moment later
        return ""

    def _wait_until_ready(self, address: str) -> str:
        while self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/ready").status_code == 200:
                    return address
            time.sleep(0.05)
        return ""

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._sink.write(line)
