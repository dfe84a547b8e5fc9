"""What people do with the page; see `browser`. A step fails by an assertion, or by an error in the page's console."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.browser_media import recorded
from benchmarks.browser_visit import PLACES, Visit
from playwright.sync_api import Download, FilePayload, Response, Route

_TRANSCRIBE, _MOUTH = "/v1/audio/transcriptions", "/v1/mtsk/mouth"
_MAX_LAG = 2  # pictures between the player's and the mouth's while the clip plays: they are read one after the other
_SETTLE_MS = 300
_MAX_WAITS = 20


@dataclass(frozen=True)
class Step:
    """Something that people do, at some of `PLACES`."""

    name: str
    run: Callable[[Visit], dict[str, Any]]
    at: Sequence[str] = ("desktop light",)


def look(visit: Visit) -> dict[str, Any]:
    """The page before anything was done: blocks of the ruler follow the slider."""
    visit.open()
    visit.check_layout()
    before = visit.page.get_attribute("#ruler", "aria-label")
    visit.shoot("empty")
    visit.page.focus("#rate")
    visit.page.keyboard.press("Home")
    after = visit.page.get_attribute("#ruler", "aria-label")
    assert before != after, after
    return {"scales": visit.page.locator(".bar span").all_inner_texts(), "axe": visit.check_access()}


_KEEP = """const send = window.fetch;
window.fetch = (path, options) => {
  const file = options?.body?.get?.('file');
  const text = (data) => new Uint8Array(data).reduce((all, byte) => all + String.fromCharCode(byte), '');
  if (file) file.arrayBuffer().then((data) => (window.sent = btoa(text(data))));
  return send(path, options);
};"""


def record(visit: Visit) -> dict[str, Any]:
    """Camera and microphone, then the text."""
    visit.page.add_init_script(_KEEP)
    visit.open()
    page = visit.page
    page.click("#open-camera")
    page.wait_for_selector("#start:visible")
    cameras = page.locator("#camera option").all_inner_texts()
    visit.shoot("live")
    page.click("#start")
    page.wait_for_timeout(1000 * visit.devices.loop_s)
    visit.shoot("recording")
    page.click("#stop")
    text = visit.text()
    page.wait_for_selector("#mouth:not(.empty)")
    visit.shoot("recorded")
    visit.check_layout()
    assert 2 * visit.num_right(text) >= len(visit.said), f"{text!r} is not what the clip says"
    sent = base64.b64decode(page.evaluate("window.sent"))
    visit.keep("recording.webm", sent)
    return {"text": text, "cameras": cameras, "length_s": page.evaluate("player.duration"), **recorded(sent)}


def choose_file(visit: Visit) -> dict[str, Any]:
    """A file: its text, its mouth, the slider, auto, the comparison, downloads."""
    visit.open()
    page = visit.page
    with page.expect_response(lambda response: response.url.endswith(_MOUTH)) as mouth:
        page.set_input_files("#file", visit.clip)
    text = visit.text()
    told = {"text": text, **_check_mouth(visit, mouth.value), **_move_slider(visit)}
    page.check("#auto")
    page.wait_for_selector(".bar.used")
    told["auto"] = [page.inner_text("#rate-label"), visit.text()]
    page.uncheck("#auto")
    told["alike"] = _compare(visit)
    told["downloads"] = [_download(visit, form) for form in ("srt", "vtt", "json")]
    visit.shoot("compared")
    visit.check_layout()
    assert 2 * visit.num_right(text) >= len(visit.said), f"{text!r} is not what the clip says"
    return {**told, "axe": visit.check_access()}


_CROP = """async ([url, size, columns, count]) => {
  const image = new Image(); image.src = url; await image.decode();
  const sheet = new OffscreenCanvas(image.width, image.height).getContext('2d');
  sheet.drawImage(image, 0, 0);
  const now = document.getElementById('mouth').getContext('2d').getImageData(0, 0, size, size).data;
  const at = document.getElementById('player').currentTime;
  const frames = [...Array(count).keys()].filter((index) => {
    const crop = sheet.getImageData((index % columns) * size, Math.floor(index / columns) * size, size, size).data;
    return crop.every((value, place) => value === now[place]);
  });
  return [at, frames];
}"""


# The player's clock runs on where a busy machine skips pictures; the mouth goes with the picture that is shown.
_PLAY = """async () => {
  const note = (_, picture) => { window.presented = picture.mediaTime; player.requestVideoFrameCallback(note); };
  player.requestVideoFrameCallback(note);
  player.currentTime = 0;
  player.muted = true;
  await player.play();
}"""


def _check_mouth(visit: Visit, response: Response) -> dict[str, Any]:
    """The crop is that of the player's picture: where it stands, and (nearly) while it plays."""
    page, sheet = visit.page, response.json()
    page.wait_for_selector("#mouth:not(.empty)")
    given = [sheet["image"], sheet["size"], sheet["columns"], sheet["num_frames"]]
    for frame in (10, 31, 50):
        page.evaluate("async (time) => { player.currentTime = time }", (frame + 0.5) / sheet["fps"])
        for _ in range(_MAX_WAITS):  # a busy machine shows the picture late
            page.wait_for_timeout(_SETTLE_MS)
            at, shown = page.evaluate(_CROP, given)
            if frame in shown:
                break
        assert frame in shown, f"at {at} s the mouth shows picture {shown}, not {frame}"
    page.evaluate(_PLAY)
    page.wait_for_timeout(1000)
    at, shown = page.evaluate(_CROP, given)
    presented_s, clock_s = page.evaluate("[presented, player.currentTime]")
    page.evaluate("player.pause()")
    assert shown, "while the clip plays, the mouth shows none of its pictures"
    assert presented_s > 0, "the clip does not play"
    lag, clock_lag = (min(abs(time_s * sheet["fps"] - each) for each in shown) for time_s in (presented_s, clock_s))
    assert lag <= _MAX_LAG, f"while the player shows the picture of {presented_s} s, the mouth shows {shown}"
    lags = {"behind_picture": round(lag, 1), "behind_clock": round(clock_lag, 1)}
    return {"mouth_pictures": sheet["num_frames"], **lags}


def _move_slider(visit: Visit) -> dict[str, Any]:
    """From end to end; the second time nothing is asked of the server."""
    page = visit.page
    page.focus("#rate")
    texts = {}
    for key in ("Home", "End", "Home"):
        page.keyboard.press(key)
        page.wait_for_timeout(_SETTLE_MS)
        texts[page.inner_text("#rate-label strong")] = visit.text()
    num_asked = visit.posts.count(_TRANSCRIBE)
    assert num_asked == len(texts) == 2, f"{num_asked} requests for the texts {texts}"
    assert page.get_attribute("#rate", "aria-valuetext"), "the slider tells no value"
    return {"ends": texts}


def _compare(visit: Visit) -> str:
    page = visit.page
    scales = page.locator(".bar span").all_inner_texts()
    page.click("#compare")
    page.wait_for_selector("#comparison tbody tr")
    rows = page.locator("#comparison .scale-name").all_inner_texts()
    assert sorted(rows) == sorted(scales), f"rows {rows}, scales {scales}"
    num_posts = len(visit.posts)
    page.select_option("#against", "majority")
    page.click("#comparison tr:last-child .scale-name")
    visit.text()
    assert page.inner_text("#rate-label strong") == rows[-1], "a row's button does not choose its scale"
    assert len(visit.posts) == num_posts, "a scale that was compared is asked for again"
    page.select_option("#against", "finest")
    return page.inner_text(".summary")


def _download(visit: Visit, form: str) -> str:
    with visit.page.expect_download() as waiting:
        visit.page.click(f"#downloads [data-format={form}]")
    download: Download = waiting.value
    content = Path(download.path()).read_text(encoding="utf-8")
    word = visit.page.locator("#said .word").first.inner_text()
    assert word in content, f"{word!r} is not in {content!r}"
    if form == "json":
        assert json.loads(content)["words"], content
    else:
        assert "-->" in content, content
        assert content.startswith("WEBVTT") == (form == "vtt"), content
    return download.suggested_filename


def drop(visit: Visit) -> dict[str, Any]:
    """A file that is dropped on the page."""
    visit.open()
    data = base64.b64encode(visit.clip.read_bytes()).decode()
    script = """([data, name]) => {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, { type: 'video/mp4' }));
      for (const type of ['dragover', 'drop']) {
        const event = new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
        document.getElementById('stage').dispatchEvent(event);
      }
    }"""
    visit.page.evaluate(script, [data, visit.clip.name])
    return {"text": visit.text(), "name": visit.page.inner_text("#clip-name")}


def keyboard(visit: Visit) -> dict[str, Any]:
    """All of it without a pointer, the focus always seen."""
    visit.open()
    page = visit.page
    visit.tab_to("open-camera")
    page.keyboard.press("Enter")
    page.wait_for_selector("#start:visible")
    assert visit.focus() == "start"
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:visible")
    assert visit.focus() == "stop"
    page.wait_for_timeout(1000 * visit.devices.loop_s)
    page.keyboard.press("Enter")
    text = visit.text()
    assert visit.focus() == "open-camera"
    visit.tab_to("word")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    page.wait_for_timeout(_SETTLE_MS)
    assert page.evaluate("player.currentTime") > 0, "a word does not lead to its time"
    visit.tab_to("auto")
    visit.tab_to("rate")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#said:not(.stale)")
    visit.shoot("slider")
    visit.tab_to("compare")
    page.keyboard.press("Enter")
    page.wait_for_selector("#comparison tbody tr")
    visit.tab_to("scale-name")
    page.keyboard.press("Enter")
    announced = page.inner_text("#announce")
    assert announced.startswith("Text at"), announced
    return {"text": text, "second": second, "announced": announced}


def refused(visit: Visit) -> dict[str, Any]:
    """The camera is refused, then there is none, and only the microphone is left."""
    script = """const real = MediaDevices.prototype.getUserMedia;
    let left = 1;
    MediaDevices.prototype.getUserMedia = function (wanted) {
      if (left-- > 0) return Promise.reject(new DOMException('no', 'NotAllowedError'));
      if (wanted.video) return Promise.reject(new DOMException('none', 'NotFoundError'));
      return real.call(this, wanted);
    };"""
    visit.page.add_init_script(script)
    visit.open()
    page = visit.page
    page.click("#open-camera")
    told = page.inner_text("#clip-problem")
    assert "did not let" in told, told
    visit.shoot("refused")
    page.click("#clip-problem button")
    page.wait_for_selector("#start:visible")
    page.wait_for_selector("#remark:visible")
    page.click("#start")
    page.wait_for_timeout(1000 * visit.devices.loop_s)
    page.click("#stop")
    text = visit.text()
    scales = page.locator(".bar span").all_inner_texts()
    assert scales, "no scales for sound alone"
    assert not any("v" in scale for scale in scales), f"sound alone offers {scales}"
    visit.shoot("sound")
    return {"told": told, "text": text, "scales": scales}


def busy(visit: Visit) -> dict[str, Any]:
    """The server is busy at first; then it wants a key, and does not take the first one."""
    page, answers = visit.page, [429, 401, 401]

    def answer(route: Route) -> None:
        if not answers:
            route.continue_()
            return
        status = answers.pop(0)
        headers = {"Retry-After": "2"} if status == 429 else {}
        body = json.dumps({"error": {"message": "not now"}})
        route.fulfill(status=status, headers=headers, content_type="application/json", body=body)

    page.route(f"**{_TRANSCRIBE}", answer)
    visit.open()
    page.set_input_files("#file", visit.clip)
    page.wait_for_selector("#status:visible")
    page.wait_for_selector("#status-text:has-text('busy')")
    told = page.inner_text("#status-text")
    visit.shoot("busy")
    for key in ("wrong", "right"):
        page.wait_for_selector("#key-dialog[open]")
        visit.shoot(f"key-{key}")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open]", state="hidden") if key == "right" else page.wait_for_timeout(
            _SETTLE_MS
        )
    return {"told": told, "text": visit.text()}


def faceless(visit: Visit) -> dict[str, Any]:
    """A video without a face, and what is no media at all."""
    visit.open()
    page = visit.page
    problem: FilePayload = {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"these are no pictures " * 50}
    page.set_input_files("#file", problem)
    page.wait_for_selector("#text-problem:visible")
    told = page.inner_text("#text-problem p")
    visit.shoot("no-media")
    page.route(
        f"**{_MOUTH}",
        lambda route: route.fulfill(
            status=400,
            content_type="application/json",
            body=json.dumps({"error": {"message": "file: no face was found in the video"}}),
        ),
    )
    page.set_input_files("#file", visit.clip)
    text = visit.text()
    page.wait_for_selector("#mouth-note:has-text('face')")
    visit.shoot("no-face")
    return {"told": told, "text": text, "mouth": page.inner_text("#mouth-note")}


STEPS = [
    Step("look", look, tuple(PLACES)),
    Step("record", record, ("desktop light", "phone light")),
    Step("file", choose_file, ("desktop light", "desktop dark", "phone light")),
    Step("drop", drop),
    Step("keyboard", keyboard),
    Step("refused", refused),
    Step("busy", busy),
    Step("faceless", faceless),
]
