"""The page keeps the server's content security policy, can be used by all, and holds together. No browser here: see
`benchmarks/browser.py`."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

PAGE = Path(str(files("mtsk.serving"))) / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
VOID = {"meta", "link", "img", "input", "br"}


class Document(HTMLParser):
    """Elements of a page: (tag, attributes, text inside, tags around)."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(source)
        assert self._open == [], "not all elements are closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text, [name for name, _ in self._open]))
        if tag not in VOID:
            self._open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, text in self._open:
            text.append(data)


@pytest.fixture(scope="module")
def document() -> Document:
    return Document((PAGE / "index.html").read_text(encoding="utf-8"))


def test_nothing_in_the_page_is_inline(document: Document) -> None:
    """`default-src 'self'` forbids scripts and styles in the page itself."""
    for tag, attributes, text, _ in document.elements:
        assert tag != "style"
        assert tag != "script" or ("src" in attributes and not "".join(text).strip())
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)


def test_everything_comes_from_the_server_itself(document: Document) -> None:
    for tag, attributes, _, _ in document.elements:
        for name in ("src", "href"):
            address = attributes.get(name)
            if address is None or address.startswith("#"):
                continue
            assert address.startswith("/page/"), (tag, address)
            assert (PAGE / address.removeprefix("/page/")).is_file(), address
    for path in (*SCRIPTS, *PAGE.glob("*.css"), *PAGE.glob("*.svg"), *PAGE.glob("*.html")):
        outside = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text(encoding="utf-8")))
        assert outside <= {"http://www.w3.org/2000/svg"}, (path.name, outside)  # that is a name, nothing is fetched


def test_text_never_becomes_markup() -> None:
    """What a clip is called, or what the server answers, is shown as text."""
    for path in SCRIPTS:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source), (
            path
        )


def test_modules_import_what_there_is_and_all_are_used() -> None:
    exports = {
        path.name: set(re.findall(r"^export (?:async )?(?:function\*?|class|const) (\w+)", path.read_text(), re.M))
        for path in SCRIPTS
    }
    used = {"page.js"}
    for path in SCRIPTS:
        for names, module in re.findall(r'^import \{ ([^}]+) \} from "\./([^"]+)";', path.read_text(), re.M):
            used.add(module)
            assert set(names.split(", ")) <= exports[module], (path.name, module)
    assert used == set(exports)
    assert len(used) > 5  # the imports were found


def test_ids_are_there_once(document: Document) -> None:
    counts = Counter(attributes["id"] for _, attributes, _, _ in document.elements if "id" in attributes)
    assert [name for name, count in counts.items() if count > 1] == []
    wanted = set()
    for path in SCRIPTS:
        wanted |= set(re.findall(r'byId\("([\w-]+)"\)', path.read_text(encoding="utf-8")))
    for _, attributes, _, _ in document.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            wanted |= set((attributes.get(name) or "").split())
    assert wanted - set(counts) == set()
    assert len(wanted) > 20  # they were found


def test_controls_have_names_and_headings_have_an_order(document: Document) -> None:
    levels = []
    for tag, attributes, text, around in document.elements:
        if tag in ("button", "input", "select", "dialog", "video", "canvas"):
            named = attributes.get("aria-label") or attributes.get("aria-labelledby") or "label" in around
            assert named or (tag == "button" and "".join(text).strip()), (tag, attributes)
        if tag == "img":
            assert "alt" in attributes
        if re.fullmatch("h[1-6]", tag):
            levels.append(int(tag[1]))
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(next_level <= level + 1 for level, next_level in itertools.pairwise(levels))


def _luminance(colour: str) -> float:
    """Relative, as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(scheme: str) -> None:
    """Text at 4.5 to 1, what is no text at 3 to 1 (WCAG 2.2, AA)."""
    source = (PAGE / "page.css").read_text(encoding="utf-8")
    light, _, dark = source.partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark.partition("\n}")[0]))
    for text in ("ink", "soft", "alert"):
        for ground in ("paper", "panel"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert _contrast(colours["alert"], colours["alert-paper"]) >= 4.5
    for shape in ("sound", "lips", "edge"):
        assert _contrast(colours[shape], colours["paper"]) >= 3, shape
    assert _contrast("#ffffff", "#000000") == pytest.approx(21)
