"""Where one sits before the page: a language and a width of the window, for tests in a browser."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from chatapp.texts import say

LOCALES = {"en": "en-US", "zh": "zh-CN"}
SIZES = {"wide": (1440, 900), "middle": (1024, 768), "phone": (390, 844)}


class Seat(NamedTuple):
    """A user's language, "en" or "zh", and the size of the window, a name of SIZES."""

    language: str
    size: str

    @property
    def narrow(self) -> bool:
        """Whether the panes beside the chat are drawers."""
        return self.size == "phone"

    def says(self, key: str, **values: object) -> str:
        """A text of the page in the user's language."""
        return say(self.language, key, **values)

    def context(self, browser: Browser, **options: object) -> BrowserContext:
        """A browser that has never been here."""
        width, height = SIZES[self.size]
        viewport = {"width": width, "height": height}
        return browser.new_context(**{"locale": LOCALES[self.language], "viewport": viewport, **options})

    def reach(self, page: Page, pane: str) -> None:
        """Makes a pane visible that folds or is a drawer: "left" or "right"."""
        button = page.locator(f"#top [data-drawer={pane}]" if self.narrow else f"#{pane} [data-fold={pane}]")
        expect(button).to_have_attribute("aria-expanded", re.compile("true|false"))  # the page can be used
        if button.get_attribute("aria-expanded") == "false":
            self.leave(page)
            button.click()
        expect(page.locator(f"#{pane}")).to_be_in_viewport()

    def leave(self, page: Page) -> None:
        """Closes the drawer that is open, so that the chat can be reached."""
        if self.narrow and page.locator("#panes").get_attribute("data-drawer"):
            page.keyboard.press("Escape")
            expect(page.locator("#panes[data-drawer]")).to_have_count(0)


#: Both languages and all three widths.
SEATS = [Seat(language, size) for language in LOCALES for size in SIZES]
#: Every test sits in one of these each time, by its name, and in all the others with `-m slow`.
USUAL = (Seat("en", "wide"), Seat("zh", "phone"))


def leave_most_for_later(tests: Iterable[pytest.Item]) -> None:
    """Marks as slow what is run at another than a test's usual seat: tests in a browser take long."""
    for test in tests:
        seat = getattr(test, "callspec", None) and test.callspec.params.get("seat")
        if seat and seat != USUAL[zlib.crc32(test.originalname.encode()) % len(USUAL)]:
            test.add_marker(pytest.mark.slow)
