"""Take the pictures of TensorBoard that the documentation shows, from the log of a real run.

    python examples/inception_explosion.py
    python docs/pictures.py runs/inception_explosion

Needs playwright and a Chromium; the package must be installed, so that TensorBoard finds the GradGuard tab.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
VIEWS = {"tab": "gradguard", "scalars": "scalars", "text": "text", "heatmap": "images"}


def take(page: Page, base: str, name: str, view: str) -> None:
    """Open one dashboard and save what a visitor sees of it."""
    page.goto(f"{base}/#{view}")
    page.reload()
    page.wait_for_timeout(9000)
    page.screenshot(path=IMAGES / f"example-{name}.png")


def main() -> None:
    """Start TensorBoard on the loopback and visit its dashboards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir")
    parser.add_argument("--port", type=int, default=6106)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", options.logdir, "--port", str(options.port)]
    server = subprocess.Popen(board, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(10)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            for name, view in VIEWS.items():
                take(page, f"http://127.0.0.1:{options.port}", name, view)
            browser.close()
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
