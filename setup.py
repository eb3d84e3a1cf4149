"""What setup.cfg cannot say: links that hold on a package index too.

There a relative link of the README leads nowhere. Where the project's address is known they are made absolute, and the
index gets its links beside the page; where it is not they become plain text, and pictures are left out.
``GRADGUARD_ADDRESS`` has precedence:

    GRADGUARD_ADDRESS=https://example.org/lightning_gradguard python -m build
"""

import os
import re
from pathlib import Path

from setuptools import setup

ADDRESS = ""
"""Of the repository, as a browser shows it: files are found below ``blob/main``, and pictures below ``raw/main``."""
PAGES = {
    "Documentation": "docs/index.md",
    "Changelog": "CHANGELOG.md",
    "Compatibility": "docs/compatibility.md",
}
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:|#)[^)]+)\)")


def for_an_index(readme: str, address: str) -> str:
    """Return the README with no relative link in it."""

    def absolute(found: re.Match[str]) -> str:
        picture, text, target = found["picture"], found["text"], found["target"]
        if not address:
            return "" if picture else text
        return f"{picture}[{text}]({address}/{'raw' if picture else 'blob'}/main/{target})"

    return LINK.sub(absolute, readme)


if __name__ == "__main__":
    address = os.environ.get("GRADGUARD_ADDRESS", ADDRESS).rstrip("/")
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    pages = {name: f"{address}/blob/main/{path}" for name, path in PAGES.items()}
    setup(
        long_description=for_an_index(readme, address),
        long_description_content_type="text/markdown",
        project_urls={"Source": address, "Issues": f"{address}/issues", **pages} if address else {},
    )
