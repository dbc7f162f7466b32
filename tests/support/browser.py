"""A headless Chromium, driven over the WebDriver protocol with the standard library alone."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.request

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# Code points of the WebDriver protocol.
KEYS = {
    "Tab": "\ue004",
    "Enter": "\ue007",
    "End": "\ue010",
    "Left": "\ue012",
    "Right": "\ue014",
}


def missing():
    """Returns which programs are not installed, as text; "" if none is missing."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


# Requests to this machine bypass any proxy that the environment sets.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One page of a running Chromium."""

    def __init__(self, address):
        self._address = address

    def request(self, method, path, **body):
        request = urllib.request.Request(
            f"{self._address}{path}",
            json.dumps(body).encode() if method == "POST" else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        with _OPENER.open(request, timeout=120) as response:
            return json.load(response)["value"]

    def devtools(self, command, **parameters):
        return self.request("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def open(self, path, width=1280, height=900, scheme="light", media=""):
        """Opens a file or an address in a window of `width` × `height` CSS px.

        A window under 600 px wide is that of a phone.
        """
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", media=media, features=[feature])
        url = path if isinstance(path, str) else path.absolute().as_uri()
        self.request("POST", "/url", url=url)

    def run(self, script, *arguments):
        """Runs the body of a JavaScript function and returns its result."""
        return self.request("POST", "/execute/sync", script=script, args=list(arguments))

    def press(self, *keys):
        """Presses keys one after the other, each a name in `KEYS` or a character."""
        strokes = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        keyboard = {"type": "key", "id": "keyboard", "actions": strokes}
        self.request("POST", "/actions", actions=[keyboard])

    def drag(self, start, end):
        """Drags the mouse from one point (x, y) of the window to another."""
        moves = [
            {"type": "pointerMove", "duration": 0, "x": start[0], "y": start[1]},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 50, "x": end[0], "y": end[1]},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": moves}
        self.request("POST", "/actions", actions=[mouse])

    def drop(self, point, *paths):
        """Drops files and folders on a point (x, y) of the window."""
        data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.devtools(
                "Input.dispatchDragEvent", type=kind, x=point[0], y=point[1], data=data
            )

    def console(self):
        """Returns the console messages since the last call."""
        return self.request("POST", "/se/log", type="browser")

    def screenshot(self, whole_page=False):
        """Returns a screenshot of the window or the whole page, as PNG."""
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole_page)
        return base64.b64decode(taken["data"])

    def pdf(self):
        """Returns the printed page, as PDF."""
        return base64.b64decode(
            self.devtools("Page.printToPDF", preferCSSPageSize=True)["data"]
        )


@contextlib.contextmanager
def chromium(folder):
    """Runs a Chromium with its profile in a folder; yields its page."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        lines = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
        port = next((found[1] for found in lines if found), None)
        assert port, "chromedriver ended before it listened"
        browser = Browser(f"http://127.0.0.1:{port}")
        options = {
            "binary": shutil.which("chromium"),
            "args": [*ARGUMENTS, f"--user-data-dir={folder}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = browser.request(
            "POST",
            "/session",
            capabilities={"alwaysMatch": {"browserName": "chrome", **wanted}},
        )
        browser = Browser(f"http://127.0.0.1:{port}/session/{session['sessionId']}")
        try:
            yield browser
        finally:
            browser.request("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(timeout=10)
        driver.stdout.close()
