"""Debian's Chromium without a screen, for the tests of a page and for its picture."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def missing() -> str | None:
    """What keeps it from being used, and what to do; None where nothing does."""
    programs = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if programs:
        return f"{' and '.join(programs)} not found: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium not found: pip install selenium"
    return None


class Browser:
    """What the tests ask of it.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, file: Path, width: int = 1280, height: int = 900, scheme: str = "light", **media: Any) -> None:
        """Load a page.

        Args:
            file: on this machine.
            width: of the window, in CSS pixels.
            height: of the window.
            scheme: the reader's ``prefers-color-scheme``.
            media: for ``Emulation.setEmulatedMedia``, ``media="print"``.
        """
        self.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": "none"})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", **media, "features": features})
        self.messages(), self.requests()  # of the page before
        self.driver.get(file.absolute().as_uri())

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """The window, in CSS pixels; ``scale`` is how many of the screen's are one of them."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    @contextlib.contextmanager
    def without_scripts(self) -> Iterator[None]:
        """A reader who has switched JavaScript off."""
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    def run(self, script: str, *arguments: Any) -> Any:
        """The result of a function's body in JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def messages(self) -> list[str]:
        """What the console says, refusals of the page's policy among them, since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses of all that was loaded since the last time."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that ends with the block."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
