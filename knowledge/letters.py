"""Texts compared by their letters and digits alone: what was folded, unwrapped or put together is found again."""

from collections.abc import Iterator

from knowledge.terms import fold

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
    """From where to where `passage` stands in `text`, from its first stretch to its last one; None if nothing does."""
    owners = [place for place, character in enumerate(text) for _ in letters(character)]
    found = list(stretches(letters(text), letters(passage)))
    if not found or len(owners) < max(end for _, end in found):
        return None
    return owners[min(start for start, _ in found)], owners[max(end for _, end in found) - 1] + 1


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
