"""Looks at reports in a headless Chromium, as a phone and a desktop show them.

python -m tests.browser RUN docs/images    # screenshots of a run's reports, for the docs
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
"""Width and height in CSS pixels."""
WIDER = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') &&
  e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 120))
"""
"""What sticks out of the page; a wide table scrolls inside its own frame."""
UNNAMED = """
return [...document.querySelectorAll('td.n')].filter(e => {
  const head = e.closest('table').querySelectorAll('th')[e.cellIndex];
  const pair = e.parentElement.cells.length == 2 && e.cellIndex == 1 && e.parentElement.cells[0].textContent.trim();
  return !pair && !(head && head.textContent.trim())}).map(e => e.closest('tr').textContent).concat(
  [...document.querySelectorAll('.figures div')].map(e => e.textContent).filter(t => !/[a-z]/i.test(t)))
"""
"""Numbers that neither a column's heading nor their row's name explains, and figures without words."""


def is_installed() -> bool:
    """Whether Chromium and its driver are here (Debian: chromium chromium-driver)."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium that asks nothing of the network; yields selenium's driver."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "hide-scrollbars", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, Service(str(shutil.which("chromedriver"))))
        try:
            yield driver
        finally:
            driver.quit()


def look(driver: Any, page: Path, size: str, dark: bool = False) -> dict[str, Any]:
    """Opens a page in one of `SIZES`.

    Returns:
        `width` that the page takes, in CSS pixels; `wider` and `unnamed` as above; `background` of the page.
    """
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(page.absolute().as_uri())
    return {
        "width": driver.execute_script("return document.documentElement.scrollWidth"),
        "wider": driver.execute_script(WIDER),
        "unnamed": driver.execute_script(UNNAMED),
        "background": driver.execute_script("return getComputedStyle(document.body).backgroundColor"),
    }


def main(run: str, folder: str) -> None:
    """Writes a picture of the top of each report of a run."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with chromium() as driver:
        for page in sorted(Path(run, "reports").glob("*.html")):
            for size, dark in (("desktop", False), ("phone", True)):
                look(driver, page, size, dark)
                driver.save_screenshot(str(Path(folder, f"{page.stem}-{size}.png")))


if __name__ == "__main__":
    main(*sys.argv[1:])
