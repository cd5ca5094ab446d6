"""A conversation as a tree: asking again or otherwise makes a branch, and nothing that was said is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol


class TreeError(ValueError):
    """The conversation does not allow this; the text is one sentence for the user."""


class NotThere(TreeError):
    """What was named is not in the conversation, or no longer."""


class Said(Protocol):
    """What a tree asks of its messages."""

    @property
    def role(self) -> str: ...

    @property
    def unfinished(self) -> bool:
        """Whether it is a reply that could go on."""


@dataclass(frozen=True)
class Node:
    """A message and the one that it follows; None is the beginning of the conversation."""

    id: int
    parent: int | None
    message: Any  #: Said


@dataclass(frozen=True)
class Tree:
    """The messages by their ids, in the order in which they came, and the last one of the branch that is shown.

    A value: each operation returns another tree. `leaf` is None before the first message.
    """

    nodes: Mapping[int, Node] = field(default_factory=dict)
    leaf: int | None = None

    def __getitem__(self, id: int) -> Node:
        if id not in self.nodes:
            raise NotThere(f"There is no message {id} in this conversation.")
        return self.nodes[id]

    @cached_property
    def _children(self) -> Mapping[int | None, list[Node]]:
        children: dict[int | None, list[Node]] = {}
        for node in self.nodes.values():
            children.setdefault(node.parent, []).append(node)
        return children

    def children(self, id: int | None) -> list[Node]:
        """The messages that follow one, oldest first; those of None begin the conversation."""
        return list(self._children.get(id, ()))

    def versions(self, id: int) -> list[Node]:
        """The message and the others in its place, oldest first."""
        return self.children(self[id].parent)

    def path_to(self, id: int | None) -> list[Node]:
        """The messages from the beginning up to one."""
        path = []
        while id is not None:
            path.append(self[id])
            id = path[-1].parent
        return path[::-1]

    @property
    def path(self) -> list[Node]:
        """The branch that is shown."""
        return self.path_to(self.leaf)

    def below(self, id: int) -> Iterator[Node]:
        """A message and all that follow it, on every branch."""
        waiting = [self[id]]
        while waiting:
            yield (node := waiting.pop())
            waiting += self.children(node.id)

    def newest_below(self, id: int) -> int:
        """The end of the newest branch through a message."""
        node = self[id]
        while follow := self.children(node.id):
            node = follow[-1]
        return node.id

    # What the operations stand on

    def question(self, id: int | None) -> Node:
        """The question to which a message belongs, which is asked again for another reply."""
        asked = [node for node in self.path_to(id) if node.message.role == "user"]
        if not asked:
            raise TreeError("There is no question to answer.")
        return asked[-1]

    def editable(self, id: int) -> Node:
        """A message, if the user wrote it: another version of it can be sent."""
        if self[id].message.role != "user":
            raise TreeError("Only your own messages can be edited.")
        return self[id]

    def continuable(self) -> Node:
        """The last reply of the branch, if it can go on where it ended."""
        path = self.path
        if len(path) < 2 or path[-2].message.role != "user" or not path[-1].message.unfinished:
            raise TreeError("There is no unfinished reply to continue.")
        return path[-1]

    # Operations

    def added(self, *nodes: Node) -> Tree:
        """With further messages, the last of which ends the branch that is shown."""
        return Tree({**self.nodes, **{node.id: node for node in nodes}}, nodes[-1].id if nodes else self.leaf)

    def updated(self, id: int, message: Any) -> Tree:
        """With another content of a message, such as a reply that has grown."""
        return replace(self, nodes={**self.nodes, id: replace(self[id], message=message)})

    def undone(self) -> Tree:
        """As before the last question of the branch. It stays, and choosing it brings it back."""
        if self.leaf is None:
            raise TreeError("There is nothing to undo.")
        return replace(self, leaf=self.question(self.leaf).parent)

    def chosen(self, id: int) -> Tree:
        """Showing the newest branch through a message."""
        return replace(self, leaf=self.newest_below(id))

    def without(self, id: int) -> Tree:
        """Without a message and all that follow it; if it was shown, its newest other version takes its place."""
        gone = {node.id for node in self.below(id)}
        rest = replace(self, nodes={other: node for other, node in self.nodes.items() if other not in gone})
        if self.leaf not in gone:
            return rest
        others = rest.children(self[id].parent)
        return rest.chosen(others[-1].id) if others else replace(rest, leaf=self[id].parent)
