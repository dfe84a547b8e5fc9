"""The page in Chromium, with a camera and a microphone that play a clip: what people do with it, step by step.

    make browser
    python -m benchmarks.browser -o runs/browser

Starts `mtsk serve`, walks through the page at desktop width, by keyboard alone and at a phone's width, and leaves
screenshots and `report.json`. Needs the extra `browser` and a Chromium (`--chromium` says where).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.browser_media import FakeDevices, fake_devices
from benchmarks.browser_steps import STEPS
from benchmarks.browser_visit import PLACES, Visit
from playwright.sync_api import Browser, Error, sync_playwright

_ROOT = Path(__file__).parents[1]
_START_S = 180.0
_PAUSE_S = 1.5  # of the clip in the devices; a recording may begin so late


@contextlib.contextmanager
def serving(model: str | None, log: Path) -> Iterator[str]:
    """A server while it is needed; gives its address.

    Raises:
        RuntimeError: if it does not get ready.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mtsk")), "serve", "--port", str(port)]
    with log.open("wb") as sink:
        server = subprocess.Popen([*command, *([model] if model else [])], stdout=sink, stderr=sink)
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/ready", server, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(60)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"mtsk serve did not get ready:\n{log.read_text(errors='replace')[-2000:]}")


def walk(browser: Browser, url: str, devices: FakeDevices, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All steps at both widths; a step that fails does not keep the next one from its page."""
    records = []
    for step, place in ((step, place) for place in PLACES for step in STEPS if place in step.at):
        if options.only not in f"{place} {step.name}":
            continue
        context = browser.new_context(**PLACES[place])
        context.set_default_timeout(1000 * options.timeout_s)
        visit = Visit(context, url, devices, options, f"{place.replace(' ', '-')}-{step.name}")
        started_s = time.monotonic()
        told: dict[str, Any] = {}
        problems = visit.problems
        try:
            told = step.run(visit)
        except (AssertionError, Error) as error:
            problems.append(str(error).strip() or repr(error))
            visit.shoot("failed")
        seconds = round(time.monotonic() - started_s, 1)
        records.append({"step": visit.name, "seconds": seconds, "problems": problems, **told})
        print(
            "FAILED" if problems else "ok", f"{seconds} s", visit.name, json.dumps(told, ensure_ascii=False), *problems
        )
        context.close()
    return records


def main() -> None:
    """Reads the options, runs all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/browser"), help="folder for the screenshots")
    parser.add_argument("--clip", type=Path, default=_ROOT / "examples" / "bbaf2n.mp4", help="what the camera shows")
    parser.add_argument("--said", default="bin blue at f two now", help="what is said in it")
    parser.add_argument("--model", help="of `mtsk serve`; default: its default")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument(
        "--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"), help="the program"
    )
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core, to check accessibility")
    parser.add_argument("--only", default="", help="steps of which `desktop light record` contains this")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="of each wait")
    options = parser.parse_args()
    if options.chromium is None:
        parser.error("no Chromium was found; --chromium says where it is")
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        devices = fake_devices(options.clip, Path(folder), pause_s=_PAUSE_S)
        url = options.url or stack.enter_context(serving(options.model, options.output / "server.log"))
        playwright = stack.enter_context(sync_playwright())
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium refuses root otherwise
        browser = playwright.chromium.launch(executable_path=options.chromium, args=[*devices.flags, *sandbox])
        records = walk(browser, url, devices, options)
        about = {"chromium": browser.version, "clip": options.clip.name, "steps": records}
        browser.close()
    (options.output / "report.json").write_text(
        json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    sys.exit(any(record["problems"] for record in records) or not records)


if __name__ == "__main__":
    main()
