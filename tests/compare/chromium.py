"""Debian's Chromium without a window, for tests of pages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


class Browser:
    """A Chromium with one page open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a report afresh and wait until its plots are drawn; earlier logs are dropped."""
        self.width(width, height)
        self.theme(dark=dark)
        self.visit(path.as_uri())
        drawn = self.wait("document.documentElement.dataset.plots")
        assert drawn == "drawn", self.complaints()

    def visit(self, address: str) -> None:
        """Load a page afresh; earlier logs are dropped."""
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(address)

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """The value of an expression of JavaScript, as soon as it counts as true."""
        self.driver.set_script_timeout(seconds)
        return self.driver.execute_async_script(
            f"""
            const done = arguments[0];
            const look = () => {expression};
            const wait = () => look() ? done(look()) : setTimeout(wait, 20);
            wait();
            """
        )

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def width(self, width: int, height: int = 900) -> None:
        """Make the screen ``width`` CSS pixels wide, and wait until the page has followed."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.settle()

    def theme(self, *, dark: bool) -> None:
        """Change the system's theme, and wait until the page has followed."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.settle()

    def settle(self) -> None:
        """Wait for two frames."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()));"
        )

    def complaints(self) -> list[str]:
        """What the page wrote to the console since it was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened, without its own data."""
        events = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        asked = [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        ]
        return [address for address in asked if not address.startswith(("data:", "about:"))]

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        import base64

        options = {"captureBeyondViewport": True}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; the test is skipped where there is none.

    With EECOMPILE_BROWSER=required, as .ci/run sets it once Chromium is installed, it fails.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None or find_spec("selenium") is None:
        without = pytest.fail if os.environ.get("EECOMPILE_BROWSER") == "required" else pytest.skip
        without("no Chromium with selenium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(browser)
    finally:
        browser.quit()
