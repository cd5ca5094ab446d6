"""Conversations as files: JSON holds everything, Markdown the branch that is shown, for reading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from .preferences import Preferences, Text
from .store import Conversation, Store, StoredMessage
from .tree import Node, Tree

FORMAT = "quatrain conversation"
VERSION = 1
LARGEST = 50_000_000  #: bytes of a file to import
MOST_MESSAGES = 100_000

#: A line that Markdown files use as structure; one in a message gets a backslash more, and loses it on the way back.
MARK = re.compile(r"(\\*)((?:## (?:User|Assistant)|### Sources)[ \t\r]*)")
#: How JSON begins: an object, or a list of such, which other programs export.
JSON = re.compile(r"\s*(?:\{|\[\s*[{\[\]])")
HEADINGS = {"user": "## User", "assistant": "## Assistant"}
ROLES = {heading: role for role, heading in HEADINGS.items()}
SOURCES = "### Sources"


class TransferError(ValueError):
    """A file can't be imported; the text is one sentence for the user."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceFile(_Strict):
    name: Text
    page: int | None
    score: float
    text: Text
    base: Text | None = None


class MessageFile(_Strict):
    """A message; its parent is the place of an earlier one in the file, or None."""

    parent: Annotated[int, Field(ge=0)] | None
    role: Literal["user", "assistant"]
    content: Text
    ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = None
    model: Text | None = None
    sources: tuple[SourceFile, ...] = ()
    chat_format: Text | None = None
    state: Literal["done", "stopped", "failed", "nothing_found", "interrupted", "writing"] = "done"
    failure: Text = ""
    reason: Literal["stop", "length", "window", "loop"] | None = None

    @classmethod
    def of(cls, message: StoredMessage, parent: int | None) -> MessageFile:
        return cls.model_validate({"parent": parent, **cls._shared(message)})

    @classmethod
    def _shared(cls, message: StoredMessage | MessageFile) -> dict[str, Any]:
        """What a message in a file and one on disk have in common."""
        return {name: getattr(message, name) for name in cls.model_fields if name != "parent"}

    def message(self) -> StoredMessage:
        values = self._shared(self)
        sources = tuple(source.model_dump(exclude_defaults=True) for source in self.sources)
        # Nobody here goes on writing what another program was writing.
        state = "interrupted" if self.state == "writing" else self.state
        return StoredMessage(**{**values, "sources": sources, "state": state, "ids": self.ids or None})


class ConversationFile(_Strict):
    format: Literal["quatrain conversation"] = FORMAT
    version: Literal[1] = VERSION
    title: Text
    preferences: Preferences
    leaf: Annotated[int, Field(ge=0)] | None
    messages: tuple[MessageFile, ...] = Field(max_length=MOST_MESSAGES)

    def tree(self) -> Tree:
        """Raises TransferError for a message that stands behind one which is not there before it."""
        for at, message in enumerate(self.messages):
            if message.parent is not None and message.parent >= at:
                raise TransferError(f"its message {at} follows message {message.parent}, which is not before it")
        if self.leaf is not None and self.leaf >= len(self.messages):
            raise TransferError(f"its last message, {self.leaf}, is not in it")
        nodes = [Node(at, message.parent, message.message()) for at, message in enumerate(self.messages)]
        return Tree({node.id: node for node in nodes}, self.leaf)


def to_json(conversation: Conversation, tree: Tree) -> str:
    """Everything but the ledgers, which tell of models here: all branches, settings, sources, token ids."""
    places: dict[int | None, int | None] = {None: None, **{id: at for at, id in enumerate(tree.nodes)}}
    messages = [MessageFile.of(node.message, places[node.parent]) for node in tree.nodes.values()]
    whole = ConversationFile(
        title=conversation.title,
        preferences=conversation.preferences,
        leaf=places[tree.leaf],
        messages=tuple(messages),
    )
    return whole.model_dump_json(indent=1)


def to_markdown(conversation: Conversation, tree: Tree) -> str:
    """The branch that is shown, with a heading for each message and the sources of a reply below it."""
    title = [f"# {conversation.title}\n"] if conversation.title else []
    return "\n".join([*title, *(_section(node.message) for node in tree.path)])


def _section(message: StoredMessage) -> str:
    sources = f"\n{SOURCES}\n\n{_source_list(message.sources)}\n" if message.sources else ""
    return f"{HEADINGS[message.role]}\n\n{_escaped(message.content)}\n{sources}"


def _source_list(sources: Sequence[Any]) -> str:
    return "\n".join(
        f"{number}. {_place(source)}\n{_quoted(source['text'])}" for number, source in enumerate(sources, start=1)
    )


def _place(source: Any) -> str:
    name = " ".join(source["name"].split())
    return name if source["page"] is None else f"{name}, page {source['page']}"


def _quoted(text: str) -> str:
    return "\n".join(f"   > {line}" for line in text.splitlines())


def _escaped(text: str) -> str:
    return "\n".join(f"\\{line}" if MARK.fullmatch(line) else line for line in text.split("\n"))


def _unescaped(line: str) -> str:
    return line[1:] if line.startswith("\\") and MARK.fullmatch(line) else line


def import_file(store: Store, data: bytes) -> Conversation:
    """A conversation from an exported file, under an id of its own. Raises TransferError."""
    if len(data) > LARGEST:
        raise TransferError(f"The file can't be imported: it is larger than {LARGEST // 1_000_000} MB.")
    try:
        text = data.decode("utf-8-sig")
        read = _from_json if JSON.match(text) else _from_markdown
        return store.insert(*read(text))
    except UnicodeDecodeError as error:
        raise TransferError("The file can't be imported: it is no text in UTF-8.") from error
    except ValidationError as error:
        raise TransferError(f"The file can't be imported: {_first(error)}.") from error
    except TransferError as error:
        raise TransferError(f"The file can't be imported: {error}.") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].splitlines()[0].rstrip(".")
    return f"{place}: {message}" if place else message


def _from_json(text: str) -> tuple[str, Preferences, Tree]:
    try:
        file = ConversationFile.model_validate_json(text)
    except ValidationError as error:
        if any(map(_of_something_else, error.errors())):
            raise TransferError("it holds no conversation that Quatrain exported; choose such a file") from error
        raise
    return file.title, file.preferences, file.tree()


def _of_something_else(error: ErrorDetails) -> bool:
    """Whether it is not a detail that is wrong, but the whole: no object, another format, or a part that is missing."""
    kind, place = error["type"], error["loc"]
    return place == ("format",) or (kind == "missing" and len(place) == 1) or (kind != "json_invalid" and not place)


def _from_markdown(text: str) -> tuple[str, Preferences, Tree]:
    head, *sections = _sections(text.split("\n"))
    if not sections:
        raise TransferError(f'it has no heading "{HEADINGS["user"]}" and is no conversation that Quatrain exported')
    messages = [StoredMessage(ROLES[lines[0].rstrip()], _content(lines[1:])) for lines in sections]
    nodes = [Node(at, at - 1 if at else None, message) for at, message in enumerate(messages)]
    title = next((line[2:] for line in head if line.startswith("# ")), messages[0].content)
    return title, Preferences(), Tree({node.id: node for node in nodes}, nodes[-1].id)


def _sections(lines: Sequence[str]) -> Iterator[list[str]]:
    """The lines before the first heading, then those of each message with its heading."""
    section: list[str] = []
    for line in lines:
        if line.rstrip() in ROLES:
            yield section
            section = []
        section.append(line)
    yield section


def _content(lines: Sequence[str]) -> str:
    """A message's text: without its sources, and the empty lines that were put around it."""
    ends = [at for at, line in enumerate(lines) if line.rstrip() == SOURCES]
    lines = lines[: ends[0]] if ends else lines
    lines = lines[1:] if lines and not lines[0].strip() else lines
    lines = lines[:-1] if lines and not lines[-1].strip() else lines
    return "\n".join(_unescaped(line) for line in lines)
