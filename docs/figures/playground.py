"""Take the README's screenshots of the playground with the shipped checkpoint.

python -m docs.figures.playground [--out docs/images]     (needs the extras `test` and `plots`, and Chromium)

The page uses the fonts of the machine: the committed pictures have Debian's fonts-inter and fonts-noto-core.
"""

import argparse
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.server.serving import serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 160
"""Colours of a picture: enough for this page, in less than half of the bytes."""
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def main() -> None:
    """Open the page on four devices, request the same completion, and save the screenshots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    browser_path = next(filter(None, map(shutil.which, BROWSERS)))
    with serving() as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        for name, (device, look) in PICTURES.items():
            screenshot = picture(browser, address, device, look).screenshot()
            save(screenshot, out / f"playground-{name}.png")
        browser.close()


def picture(browser: Browser, address: str, device: dict[str, Any], look: Callable[[Page], None]) -> Page:
    """Return the page after `look` has used it."""
    page = browser.new_page(device_scale_factor=2, reduced_motion="reduce", **device)
    page.goto(address)
    page.locator("#model", has_text="parameters").wait_for()
    look(page)
    return page


def save(png: bytes, path: Path) -> None:
    """Write a picture with few colours."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def write(page: Page) -> None:
    """Request a completion and wait for its end."""
    page.click("text=Complete")
    page.locator("#status", has_text="Done").wait_for()


def one(page: Page) -> None:
    """Request a completion and open the card of the token with the most streams."""
    write(page)
    streams = page.locator("rect").evaluate_all("(bars) => bars.map((bar) => bar.height.baseVal.value)")
    page.locator(".token").nth(len(streams) - 1 - streams[::-1].index(max(streams))).focus()


def short(page: Page) -> None:
    """Do as `one`, with fewer tokens."""
    page.fill("#max_tokens", "30")
    one(page)


def beside(page: Page) -> None:
    """Request completions without forks and with forks, side by side."""
    page.check("text=Two ratios side by side")
    page.fill("#ratio-1", "0")
    page.fill("#ratio-2", "4")
    write(page)


PICTURES: dict[str, tuple[dict[str, Any], Callable[[Page], None]]] = {
    "light": ({"viewport": {"width": 1000, "height": 950}}, one),
    "dark": ({"viewport": {"width": 1000, "height": 950}, "color_scheme": "dark"}, one),
    "beside": ({"viewport": {"width": 1200, "height": 1060}}, beside),
    "phone": (PHONE, short),
}

if __name__ == "__main__":
    main()
