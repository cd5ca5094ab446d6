"""Style sheets, which Gradio rewrites before it serves them."""

from __future__ import annotations

import re

from chatapp.ui.page import STYLES

COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
SELECTORS = re.compile(r"(?<![^{};])[^{};]+(?=\{)")
INSIDE = re.compile(r"\([^()]*,[^()]*\)")


def test_no_selector_has_a_comma_in_parentheses() -> None:
    """Gradio takes what follows a comma for another selector and puts its own class before it: ":has(a, b)" is torn."""
    for file in STYLES.glob("*.css"):
        for selector in SELECTORS.findall(COMMENT.sub("", file.read_text(encoding="utf-8"))):
            assert selector.lstrip().startswith("@") or not INSIDE.search(selector), (file.name, selector)
