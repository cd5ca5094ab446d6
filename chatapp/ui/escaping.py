"""Text of others made harmless."""

from __future__ import annotations

import re

#: Characters that HTML, Markdown or LaTeX would act on wherever they stand.
ACTIVE = re.compile(r"[&<>\"'\\`*_$\[\]|~^]")


def escape(text: str, active: re.Pattern[str] = ACTIVE) -> str:
    """Text for HTML that a Markdown renderer passes on: nothing in it acts, line ends stay."""
    inert = active.sub(lambda match: f"&#{ord(match[0])};", text)
    return inert.replace("\r\n", "\n").replace("\n", "<br>")
