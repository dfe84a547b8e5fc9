"""A fresh page in the browser: what is there in every step of `browser`."""

from __future__ import annotations

import argparse
import re
from typing import Any

from benchmarks.browser_media import FakeDevices
from playwright.sync_api import BrowserContext, Request

_DESKTOP: Any = {"viewport": {"width": 1280, "height": 860}}
_PHONE: Any = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}
PLACES: dict[str, dict[str, Any]] = {
    "desktop light": _DESKTOP,
    "desktop dark": {**_DESKTOP, "color_scheme": "dark"},
    "phone light": _PHONE,
    "phone dark": {**_PHONE, "color_scheme": "dark", "reduced_motion": "reduce"},
}
_EXPECTED = (
    re.compile(  # the server's refusals are part of some steps, reading the mouth's pixels is the check's own doing
        r"Failed to load resource: the server responded with a status of (4\d\d|503)|Canvas2D: Multiple readback"
    )
)


class Visit:
    """A fresh page.

    Attributes:
        problems: what the page complained of.
        posts: paths of the requests that sent a clip.
    """

    def __init__(
        self, context: BrowserContext, url: str, devices: FakeDevices, options: argparse.Namespace, name: str
    ) -> None:
        self.page = context.new_page()
        self.url, self.devices, self.clip, self.name = url, devices, options.clip, name
        self.said: list[str] = options.said.split()
        self.problems: list[str] = []
        self.posts: list[str] = []
        self._options = options
        self.page.on("pageerror", lambda error: self.problems.append(f"error in the page: {error}"))
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("request", self._count)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not _EXPECTED.search(text):
            self.problems.append(f"console: {text}")

    def _count(self, request: Request) -> None:
        if request.method == "POST":
            self.posts.append(request.url.removeprefix(self.url.rstrip("/")))

    def open(self) -> None:
        """Opens the page and waits for its scales."""
        self.page.goto(self.url)
        self.page.wait_for_selector(".bar")

    def shoot(self, what: str) -> None:
        """A picture of the whole page."""
        self.page.screenshot(path=self._options.output / f"{self.name}-{what}.png", full_page=True)

    def keep(self, what: str, data: bytes) -> None:
        """A file beside the pictures."""
        (self._options.output / f"{self.name}-{what}").write_bytes(data)

    def text(self) -> str:
        """Waits for words, and returns them."""
        self.page.wait_for_selector("#said:not(.stale) .word")
        return " ".join(self.page.locator("#said .word").all_inner_texts())

    def num_right(self, text: str) -> int:
        """So many words of the clip are in a text, by place or one beside it."""
        words = text.split()
        return sum(word in words[max(0, at - 1) : at + 2] for at, word in enumerate(self.said))

    def focus(self) -> str:
        """The id or class of what has the focus, which must be seen."""
        assert self.page.evaluate("document.activeElement.matches(':focus-visible')"), "the focus is not seen"
        return str(self.page.evaluate("document.activeElement.id || document.activeElement.className"))

    def tab_to(self, wanted: str, *, key: str = "Tab") -> None:
        """Presses Tab until something has the focus."""
        passed = []
        for _ in range(40):
            self.page.keyboard.press(key)
            passed.append(self.focus())
            if passed[-1] == wanted:
                return
        raise AssertionError(f"{key} does not get to {wanted}; it went {passed}")

    def check_layout(self) -> None:
        """Nothing is wider than the window."""
        width, room = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= room, f"the page is {width} px wide in a window of {room}"

    def check_access(self) -> int | None:
        """Runs axe, if it was given; the number of rules that passed."""
        if self._options.axe is None:
            return None
        self.page.evaluate(self._options.axe.read_text(encoding="utf-8"))  # in the check alone: the policy forbids it
        found = self.page.evaluate("axe.run()")
        told = [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found["violations"]]
        assert not told, f"accessibility: {told}"
        return len(found["passes"])
