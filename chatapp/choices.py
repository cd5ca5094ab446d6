"""What is chosen on the settings page, for all conversations: one small file in the data folder.

What is chosen there wins over the command line and the environment, and these over what the app does by itself; what is
not chosen stays theirs. A conversation's own preferences win over all of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .atomic import write_whole
from .conversation import REPLY
from .preferences import Preferences, Text
from .sentences import Sentence

NAME = "settings.json"
DAMAGED = "settings.damaged.json"
LONGEST_ROLE = 60  #: characters of a role's name
SMALLEST_WINDOW = 256

Language = Literal["auto", "zh", "en"]
Theme = Literal["auto", "light", "dark"]


class Role(BaseModel):
    """A system prompt with a name."""

    model_config = ConfigDict(frozen=True)

    name: Text = Field(min_length=1, max_length=LONGEST_ROLE)
    system: Text = Field(min_length=1)


class LastModel(BaseModel):
    """What was loaded on the page last."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path
    tier: str = "auto"
    adapter: Path | None = None
    chat_format: str | None = None


class Choices(BaseModel):
    """What is None was not chosen. `defaults` are what new conversations begin with.

    Fields of a newer version's file are passed over.
    """

    model_config = ConfigDict(frozen=True)

    language: Language = "auto"
    theme: Theme = "auto"
    summarise: bool | None = None
    window: int | None = Field(None, ge=SMALLEST_WINDOW)
    reply: int | None = Field(None, ge=16)
    reading: float | None = Field(None, ge=0, le=3600)
    defaults: Preferences = Preferences()
    roles: tuple[Role, ...] = ()
    model: LastModel | None = None


@dataclass(frozen=True)
class Policy:
    """How the window is spent.

    On a summary of the oldest exchanges where they have no room, or without them; at most so many tokens of the model's
    own; so many kept for a reply; and so many seconds for reading passages (0: any time).
    """

    summarise: bool = False
    window: int | None = None
    reply: int = REPLY
    reading: float = 0.0


class Chosen:
    """The choices as they are now. Without a file they end with the program; `start` is what the command line says."""

    def __init__(self, file: Path | None = None, start: Policy | None = None) -> None:
        self.start = start or Policy()
        self.problem: Sentence | None = None  #: why the file was not used
        self._file = file
        self._lock = threading.Lock()
        self.now = self._read()

    @property
    def policy(self) -> Policy:
        chosen = {name: getattr(self.now, name) for name in vars(self.start)}
        return Policy(**{**vars(self.start), **{name: value for name, value in chosen.items() if value is not None}})

    def change(self, **changes: Any) -> Choices:
        """The choices with these changes, which are on disk when it returns. Raises ValidationError (a ValueError) for
        values that can't be, and Sentence where the disk refuses them; then they are as they were."""
        with self._lock:
            changed = Choices.model_validate({**dict(self.now), **changes})
            try:
                if self._file is not None:
                    write_whole(self._file, changed.model_dump_json(exclude_none=True, indent=2))
            except OSError as error:
                raise Sentence("settings_unkept", reason=error.strerror or error) from error
            self.now = changed
        return changed

    def _read(self) -> Choices:
        if self._file is None:
            return Choices()
        try:
            return Choices.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Choices()
        except (OSError, ValidationError) as error:
            self.problem = self._put_aside(error)
            return Choices()

    def _put_aside(self, error: OSError | ValidationError) -> Sentence:
        """Keeps a damaged file under another name: its roles may have taken long to write."""
        aside = self._file.with_name(DAMAGED)
        try:
            if isinstance(error, ValidationError):
                self._file.replace(aside)
                return Sentence("settings_damaged", name=NAME, aside=DAMAGED)
        except OSError as failure:
            error = failure
        return Sentence("settings_unreadable", name=NAME, reason=getattr(error, "strerror", None) or error)
