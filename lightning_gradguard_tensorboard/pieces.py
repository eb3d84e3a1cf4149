"""Sentences in pieces: the page parses no markup, and text has none but backticks around commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

Words = list[dict[str, str]]
"""A sentence in pieces, ``{"text": ...}``, ``{"layer": ...}`` or ``{"code": ...}``."""
_COMMAND = re.compile(r"`([^`]+)`")


def with_commands(text: str) -> Words:
    """Return a sentence whose commands are pieces of their own.

    >>> with_commands("call `guard(x)` now")
    [{'text': 'call '}, {'code': 'guard(x)'}, {'text': ' now'}]
    """
    split = _COMMAND.split(text)
    return [{"code" if at % 2 else "text": part} for at, part in enumerate(split) if part]


def plain_text(words: Sequence[dict[str, str]]) -> str:
    """Return pieces as one text, commands between backticks."""
    return "".join(f"`{one['code']}`" if "code" in one else one.get("text", one.get("layer", "")) for one in words)


def located(said: dict[str, Any], run_dir: str | None) -> dict[str, Any]:
    """Return a verdict whose commands name the run's own directory, where that is known."""
    if run_dir is None:
        return said
    told = [{**one, "words": [_at(word, run_dir) for word in one["words"]]} for one in said["answers"]]
    return {**said, "answers": told}


def _at(word: dict[str, str], run_dir: str) -> dict[str, str]:
    """A path in a call is a string, one on the command line is quoted where a shell would break it."""
    if "RUN_DIR" not in (code := word.get("code", "")):
        return word
    return {"code": code.replace("RUN_DIR", repr(run_dir) if "=RUN_DIR" in code else shlex.quote(run_dir))}
