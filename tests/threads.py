"""The same call from several threads at once."""

import threading
from collections.abc import Callable


def at_once(call: Callable[[int], None], count: int = 4) -> None:
    """call(0) .. call(count - 1), each in a thread of its own; all have to come to an end."""
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
