"""Opens a written report in headless Chromium, where one is installed."""

import itertools
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from made_runs import COLUMNS, PALETTE, ids, make_run
from pipeline.report.write import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
)
DESKTOP, PHONE = 1400, 390
# The texts of the page with their color and that of what lies behind them.
TEXT_COLORS = """
[...document.querySelectorAll("body *")].filter(element =>
  element.checkVisibility() &&
  [...element.childNodes].some(node => node.nodeType == Node.TEXT_NODE && node.data.trim())
).map(element => {
  let behind = element;
  while (behind && getComputedStyle(behind).backgroundColor == "rgba(0, 0, 0, 0)")
    behind = behind.parentElement;
  const style = getComputedStyle(element);
  return [
    element.textContent.trim(),
    element.closest("svg") ? style.fill : style.color,
    getComputedStyle(behind).backgroundColor,
  ];
})
"""


class Browser:
    """A page of a Chromium, driven through its DevTools protocol: JSON texts that end in a NUL."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe, self._received = pipe, b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method and waits for its result; keeps the events that come before."""
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": parameters} | self._session
        self._pipe.sendall(json.dumps(request).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            more = self._pipe.recv(1 << 20)
            assert more, "Chromium ended"
            self._received += more
        message, self._received = self._received.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, path: str | Path, *, width: int, scheme: str = "light") -> None:
        """Opens a file in a window of that many pixels, and waits until it is loaded."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width == PHONE,
        )
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[preference])
        self.call("Page.navigate", url=Path(path).as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Evaluates JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"]["value"]

    def requests(self) -> list[str]:
        """Lists the addresses that the page asked for, its own first."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [request["request"]["url"] for request in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Lists errors and whatever else came to the console."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in methods]


@contextmanager
def running(profile: Path) -> Iterator[Browser]:
    """Starts Chromium with an empty profile; it reads from file descriptor 3, writes to 4."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    theirs.set_inheritable(True)
    here = theirs.fileno()
    command = f'exec "$@" 3<&{here} 4>&{here}'
    words = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}"]
    with open(profile.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", *words], pass_fds=[here], stdout=log, stderr=log
        )
    theirs.close()
    try:
        yield Browser(ours)
    finally:
        process.terminate()
        process.wait(30)
        ours.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(f"needs one of {', '.join(NAMES)}")
    with running(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def contrast(one: str, other: str) -> float:
    """Computes the contrast ratio of WCAG 2, 1 to 21, of two opaque colors: rgb(R, G, B)."""

    def luminance(color: str) -> float:
        found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", color)
        assert found, color
        values = [int(value) / 255 for value in found.groups()]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(f * v for f, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, bright = sorted([luminance(one), luminance(other)])
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("job", COLUMNS)
def test_report_in_a_browser(browser: Browser, tmp_path: Path, job: str) -> None:
    """Loads without an error or a request to anywhere, and is readable wherever it is read."""
    failed = [(0, f"a-folder-with-a-long-name/{'x' * 80}.jpg", "ImageError", "cut short " * 20)]
    finished = {"seconds": 10.0} if job != "embed" else None
    output = make_run(tmp_path / "run", [ids(30)], job=job, failed=failed, report=finished)
    write_report(output, palette=PALETTE)
    report = Path(output, "report.html")
    backgrounds = set()
    for width, scheme in itertools.product((DESKTOP, PHONE), ("light", "dark")):
        browser.open(report, width=width, scheme=scheme)
        assert browser.complaints() == []
        page, *inside = browser.requests()
        assert page == report.as_uri()
        assert [address[:40] for address in inside if not address.startswith("data:")] == []
        widths = browser.value("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) >= 24
        assert all(width > 0 for width in widths)
        assert browser.value("document.scrollingElement.scrollWidth") <= width
        texts = browser.value(TEXT_COLORS)
        assert len(texts) > 50
        pale = [text for text in texts if contrast(text[1], text[2]) < 4.5]
        assert pale == []
        backgrounds.add(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


@pytest.mark.slow
def test_what_a_browser_would_complain_of_is_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><style>body { background: #fff } p { color: #777; width: 500px }</style>"
        "<script>console.error('no')</script>"
        "<p>pale<img src=gone.png><img src='http://127.0.0.1:9/a.png'>"
    )
    browser.open(page, width=PHONE)
    assert "http://127.0.0.1:9/a.png" in browser.requests()
    assert len(browser.complaints()) >= 3
    assert browser.value("[...document.images].map(image => image.naturalWidth)") == [0, 0]
    assert browser.value("document.scrollingElement.scrollWidth") > PHONE
    [(text, color, behind)] = browser.value(TEXT_COLORS)
    assert text == "pale"
    assert contrast(color, behind) < 4.5
