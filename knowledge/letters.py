"""Texts compared by their letters and digits alone: what was folded, unwrapped or put together is found again."""

from collections.abc import Iterable, Iterator

from knowledge.terms import fold

_LITTLE = 20  # letters: what a passage leaves out, such as a footnote's number or a mark of Markdown
_SEED = 8  # letters: a stretch of a passage that is as long is looked for


def letters(text: str) -> str:
    """The letters and digits of `text`, folded."""
    return "".join(filter(str.isalnum, fold(text)))


def stretches(held: str, wanted: str) -> Iterator[tuple[int, int]]:
    """From and to in `held` of what it has of `wanted`, the longest stretch at each place; both are `letters`."""
    seed = min(_SEED, len(wanted))
    at, behind = 0, 0
    while seed and at + seed <= len(wanted):
        # Of several places the one that goes on longest, then the next one in reading order.
        places = _places(held, wanted[at : at + seed])
        ranked = [(_shared(wanted, at, held, place), place >= behind, -place) for place in places]
        length, _, place = max(ranked, default=(0, False, 0))
        if length:
            behind = length - place
            yield -place, behind
        at += length or 1


def extent(text: str, passage: str) -> tuple[int, int] | None:
    """From where to where most of `passage` stands in `text`; None if nothing of it does."""
    owned = [(place, letter) for place, character in enumerate(text) for letter in letters(character)]
    found = list(_together(stretches("".join(letter for _, letter in owned), letters(passage))))
    if not found:
        return None
    start, end = max(found, key=lambda place: place[1] - place[0])
    return owned[start][0], owned[end - 1][0] + 1


def _together(found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Stretches with only a little between them as one."""
    first, last = -1, -1
    for start, end in found:
        if first >= 0 and 0 <= start - last <= _LITTLE:
            last = end
        else:
            if first >= 0:
                yield first, last
            first, last = start, end
    if first >= 0:
        yield first, last


def _places(held: str, seed: str) -> Iterator[int]:
    place = held.find(seed)
    while place >= 0:
        yield place
        place = held.find(seed, place + 1)


def _shared(wanted: str, at: int, held: str, place: int) -> int:
    """How many characters are the same, from `at` and from `place` on."""
    length = 0
    for one, other in zip(wanted[at:], held[place:], strict=False):
        if one != other:
            break
        length += 1
    return length
