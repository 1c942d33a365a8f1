"""The picture of a trace's page: ``python -m tests.inspection.picture`` runs examples/trace_dtypes.py and writes it."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from .browser import chromium, missing

ROOT = Path(__file__).parents[2]
PICTURES = {"light": ROOT / "docs" / "images" / "trace.png", "dark": ROOT / "docs" / "images" / "trace-dark.png"}
WIDTH = 1100  # in CSS pixels
POINT = "document.querySelector('td.heavy').focus({preventScroll: true})"


def main() -> int:
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = Path(folder, "trace.html")
        subprocess.run(
            [sys.executable, "examples/trace_dtypes.py", page], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        for scheme, picture in PICTURES.items():
            browser.open(page, WIDTH, 4000, scheme)
            height = browser.run(
                f"{POINT}; return Math.ceil(document.getElementById('tip').getBoundingClientRect().bottom)"
            )
            browser.resize(WIDTH, height + 24, 1.5)
            browser.run(POINT)
            with Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())) as shot:
                shot.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)
            print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
