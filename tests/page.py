"""Opens a page in headless Chromium and says what it shows, logs and asks the network for.

Chromium is spoken to over a pair of pipes (`--remote-debugging-pipe`), which needs no port and no library, and
emulates a device of any width: a window of headless Chromium cannot be narrower than about 500 pixels.
By hand: `python tests/page.py results/report.html DIRECTORY` leaves screenshots of a phone and of a desk, light
and dark.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever is asked for is logged, and never leaves the machine
    "--remote-debugging-pipe",
)
LOCAL = ("file:", "data:", "chrome:", "about:", "blob:")
OWN = "not an origin"
SECONDS = 30

# The browser reads commands from descriptor 3 and writes answers to descriptor 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def executable() -> str | None:
    """Chromium, or a browser that speaks the same protocol."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


needs_chromium = pytest.mark.skipif(
    executable() is None, reason="needs Chromium to open the page (Debian: apt-get install chromium)"
)


class Browser:
    """A headless Chromium with one page; a context manager.

    `console` and `requests` fill while the page is open; `outgoing()` is what the whole browser asked the
    network for, and ends it.
    """

    def __init__(self) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="page-"))
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._buffer = b""
        self._process = self._start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(
        self, path: Path, width: int = 1300, height: int = 900, dark: bool = False, media: str = "", phone: bool = True
    ) -> None:
        """Load a file as a device of that width shows it; `phone`: a phone, where it is narrow."""
        self.device(width, height, phone)
        self.media(dark, media)
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._wait("Page.loadEventFired")

    def device(self, width: int, height: int = 900, phone: bool = True) -> None:
        """Emulate a device of that width in CSS pixels; narrow ones are phones, unless that is ruled out."""
        phone = phone and width < 700
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def media(self, dark: bool = False, kind: str = "") -> None:
        """Emulate a color scheme, and a medium such as `print`."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, such as `Enter` or `Tab`."""
        code = {"Enter": 13, "Tab": 9, " ": 32}[key]
        extra = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def screenshot(self, path: Path, selector: str | None = None, full: bool = True) -> None:
        """Write a PNG of the whole page, of what is in view, or of one element."""
        options: dict[str, Any] = {"captureBeyondViewport": full}
        box = self.evaluate(_BOX % json.dumps(selector or "html")) if full else None
        if box:
            options["clip"] = {**box, "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def pieces(self, stem: Path, height: int = 4000) -> None:
        """Write PNGs of the whole page, one below the other: of very long ones Chromium leaves most blank."""
        self.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        end: int = self.evaluate("document.documentElement.scrollHeight")
        for number, top in enumerate(range(0, end, height)):
            # scrolled to, and on the screen for a moment, so that everything is drawn
            self.evaluate(f"scrollTo(0, {top}); new Promise((done) => setTimeout(done, 300))")
            self.screenshot(stem.with_name(f"{stem.name}-{number:02}.png"), full=False)

    def pdf(self, path: Path) -> None:
        """Print the page on A4."""
        found = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def outgoing(self) -> list[str]:
        """Close the browser; addresses that pages asked the network for, by the net log.

        Chromium's own errands (updates, the time) are in that log without an origin, and are left out.
        """
        self.close(keep=True)
        text = (self._folder / "net.json").read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(self._folder, ignore_errors=True)
        log = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
        kind = log["constants"]["logSourceType"]["URL_REQUEST"]
        starts = (event.get("params", {}) for event in log["events"] if event["source"]["type"] == kind)
        found = {start.get("url", "") for start in starts if start.get("initiator", OWN) != OWN}
        return sorted(address for address in found if not address.startswith(LOCAL))

    def close(self, keep: bool = False) -> None:
        """End the browser; `keep` leaves its folder."""
        if self._process.poll() is None:
            self._session = None
            try:
                self.call("Browser.close")
                self._process.wait(10)
            except (OSError, RuntimeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
            os.close(self._write)
            os.close(self._read)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the protocol and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        program = executable()
        if program is None:
            raise RuntimeError("Chromium is not installed")
        theirs, self._write = os.pipe()
        self._read, out = os.pipe()
        options = [
            f"--user-data-dir={self._folder / 'profile'}",
            f"--log-net-log={self._folder / 'net.json'}",
        ]
        with (self._folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(theirs), str(out), program, *FLAGS, *options, "about:blank"],
                pass_fds=(theirs, out),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        os.close(theirs)
        os.close(out)
        return process

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], SECONDS)[0]:
                raise RuntimeError(f"Chromium did not answer for {SECONDS} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended: " + (self._folder / "stderr").read_text(errors="replace")[-2000:])
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(item.get("value", item)) for item in params["args"]))
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def _wait(self, method: str) -> None:
        end = time.monotonic() + SECONDS
        while not any(event.get("method") == method for event in self._events):
            if time.monotonic() > end:
                raise RuntimeError(f"no {method} within {SECONDS} s")
            self._note(self._receive())


_BOX = """(() => {
  const box = document.querySelector(%s).getBoundingClientRect();
  return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height};
})()"""


def main(page: Path, folder: Path) -> None:
    """Leave screenshots of a phone and of a desk, light and dark, in pieces from top to bottom."""
    folder.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        for width in (400, 1300):
            for dark in (False, True):
                browser.open(page, width, 4000, dark=dark)
                browser.pieces(folder / f"{width}-{'dark' if dark else 'light'}")
        print("\n".join(browser.console) or "console: nothing")
        print("\n".join(browser.outgoing()) or "network: nothing")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
