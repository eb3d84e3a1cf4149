"""Halt a run of two processes, and write what its owner sees into docs/when-it-happens.md.

``python -m tests.replay.show``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "when-it-happens.md"


def told(command: list[str]) -> str:
    """Return what a command prints."""
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


def main() -> None:
    """Put real output between the markers of the page."""
    with tempfile.TemporaryDirectory() as root:
        seen = told(["tests.replay.halted_run", root, "2"])
        [bundle] = (Path(root) / "gradguard_evidence").iterdir()
        wanted = re.compile(r"^GradGuard: incident|TrainingDiverged:|^  (cause|evidence)|^lightning-gradguard replay")
        lines = dict.fromkeys(re.sub(r"^\[rank\d\]: ?", "", line) for line in seen.splitlines())
        alert = [line for line in lines if wanted.search(line)]
        size = bundle.stat().st_size
        answer = told(["lightning_gradguard.cli", "replay", str(bundle), "--module", "tests.replay.faults.Classifier"])
        blocks = {"alert": "\n".join(alert), "answer": answer.rstrip(), "size": f"{size:,} bytes"}
        page = PAGE.read_text()
        for name, text in blocks.items():
            shown = text.replace(root, "runs").replace(f"{ROOT}/", "")
            marked = re.compile(rf"(<!-- {name} -->\n```text\n).*?(```\n<!-- end -->)", re.S)
            page = marked.sub(lambda found, shown=shown: f"{found[1]}{shown}\n{found[2]}", page)
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
