"""Headless Chromium on one page, driven through the DevTools protocol over a pair of pipes: no package, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = "Chromium is missing; install it (Debian: apt-get install chromium)"
PATIENCE = 60.0  # seconds for one answer, on a busy machine


def program() -> str | None:
    """The browser's path; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """A browser with one tab.

    asked: the addresses that a page wanted, its own data aside; complaints: errors of its script.
    """

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # what we write, and what we read
        words = [program(), "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                 f"--user-data-dir={profile}", "about:blank"]
        # the protocol takes commands at descriptor 3 and answers at 4
        shell = ["sh", "-c", f'exec "$@" 3</dev/fd/{ours[0]} 4>/dev/fd/{theirs[1]}', "sh", *map(str, words)]
        self.process = subprocess.Popen(shell, pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.back = ours[1], theirs[0]
        self.waiting, self.count, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Chromium:
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.to)
        os.close(self.back)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """A command and its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": values}
        message |= {"sessionId": self.session} if self.session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.waiting:
            assert select.select([self.back], [], [], max(0.0, end - time.monotonic()))[0], "the browser does not answer"
            data = os.read(self.back, 1 << 20)
            assert data, "the browser is gone"
            self.waiting += data
        text, _, self.waiting = self.waiting.partition(b"\0")
        found = json.loads(text)
        if found.get("method") == "Network.requestWillBeSent":
            url = found["params"]["request"]["url"]
            self.asked += [] if url.startswith("data:") else [url]
        elif found.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(found["params"]["exceptionDetails"]))
        elif found.get("method") == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
            self.complaints.append(found["params"]["entry"]["text"])
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, page: Path, width: int, height: int = 1000) -> None:
        """Load a file into a window of this width, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to hold; what a link does comes a moment after its click."""
        end = time.monotonic() + 10
        while not self.run(script):
            assert time.monotonic() < end, f"never so: {script}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key as a person presses it: what has the focus gets it."""
        text = {"Enter": "\r", "Space": " "}.get(key)
        about = {"key": " " if key == "Space" else key, "code": key,
                 "windowsVirtualKeyCode": {"Enter": 13, "Space": 32, "Tab": 9}[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """The mouse in the middle of an element; what lies above it gets the click."""
        at = self.run(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{block: "center"}});
            const box = found.getClientRects()[0];
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def photograph(self, file: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(found["data"]))
