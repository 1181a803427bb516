"""A real headless Chromium, driven over the DevTools protocol through a pair of pipes.

`--remote-debugging-pipe` takes messages, each ended by a zero byte, on descriptor 3 and answers on 4:
nothing else is needed.
"""

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

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_PATIENCE_S = 60.0
_KEYS = {
    **{name: (name, code) for name, code in (("ArrowLeft", 37), ("ArrowUp", 38))},
    **{name: (name, code) for name, code in (("ArrowRight", 39), ("ArrowDown", 40))},
    **{name: (name, code) for name, code in (("PageUp", 33), ("PageDown", 34))},
    **{name: (name, code) for name, code in (("End", 35), ("Home", 36), ("Escape", 27))},
}


class Browser:
    """A browser with one page; what the page logs and asks for is kept."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        # the pipes come as standard input and output, and are passed on as 3 and 4
        script = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >&2'
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["sh", "-c", script, CHROMIUM, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._number, self._session, self._pending = 0, "", b""
        self.troubles: list[str] = []
        """Errors that the page logged, and exceptions that it did not catch."""
        self.requests: list[str] = []
        """URLs that it asked for."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # at which it ends
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        assert self._process.stdin is not None
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def open(
        self, address: str, *, width: int = 1200, height: int = 900, dark: bool = False
    ) -> None:
        """Load a page and wait until its first map is drawn, and all else is there."""
        self.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.until("document.querySelector('footer') && document.documentElement.dataset.drawn")

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, in pixels of the page."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + _PATIENCE_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, (expression, self.troubles)
            time.sleep(0.02)
        return value

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key where the focus is."""
        name, code = _KEYS[key]
        common = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def mouse(self, kind: str, x: float, y: float, *, buttons: int = 0) -> None:
        """Send a mouse event: `mouseMoved`, `mousePressed` or `mouseReleased`."""
        button = "left" if kind != "mouseMoved" or buttons else "none"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind, x=x, y=y, button=button, buttons=buttons,
            clickCount=int(kind != "mouseMoved"),
        )  # fmt: skip

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Save what is shown, or the whole page, as PNG."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png", **(
            {"clip": {**self.call("Page.getLayoutMetrics")["cssContentSize"], "scale": 1}} if whole else {}
        ))  # fmt: skip
        file.write_bytes(base64.b64decode(taken["data"]))

    def _message(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
            read = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            assert read, "the browser is gone, or silent"
            self._pending += read
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def _note(self, method: str, given: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.troubles.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.troubles.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.troubles.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
