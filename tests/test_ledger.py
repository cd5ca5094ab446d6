"""The ledger of a turn: exact in every chat format, whole messages, and what is left out is left out in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import models
from chatapp.answering import wording
from chatapp.conversation import Plan, QuestionTooLong, Turn, plan, reply_budget
from chatapp.effort import LADDER, Effort
from chatapp.ledger import KINDS, REASONS, Ledger
from knowledge import Passage
from models import LoadedModel
from models.chat_formats import FORMATS
from models.prompts import ChatHints
from models.registry import resolve
from models.tokenizer import Tokenizer
from tests.fakes import ByteTokenizer, scripted
from tests.made_tokenizers import KIND_OF, make_folder, text_lines

WINDOW = 2048
ROOM = WINDOW - 512
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORM_NAMES = [*FORMATS, "template"]


class Spoken:
    """A checkpoint of which only the tokenizer and the chat format matter."""

    config = {"model_type": "llama"}

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def chat_hints(self) -> ChatHints:
        return ChatHints(self._template)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """A function (format, window) -> a loaded model that talks in this format with a tokenizer of its kind."""
    read: dict[str, Tokenizer] = {}

    def load(name: str, window: int = WINDOW) -> LoadedModel:
        kind = "chatml" if name == "template" else KIND_OF.get(name, "llama")
        if kind not in read:
            folder: Path = make_folder(kind, tmp_path_factory.mktemp("kinds") / kind)
            read[kind] = models.load_tokenizer(folder)
        checkpoint = Spoken(read[kind], TEMPLATE if name == "template" else None)
        wanted = None if name == "template" else name
        return LoadedModel(None, resolve(Spoken.config), checkpoint, "fp16", torch.device("cpu"), window, wanted)

    return load


def said(number: int, role: str) -> str:
    lines = text_lines()
    return f"<{number}{role[0]}> {lines[number % len(lines)]} <{number}{role[0]}/>"


def conversation(exchanges: int) -> list[Turn]:
    return [Turn(role, said(number, role)) for number in range(exchanges) for role in ("user", "assistant")]


def found(*sizes: int) -> list[Passage]:
    text = " ".join(text_lines())
    return [
        Passage(f"{n}.pdf", n, 1 - n / 10, f"<{n}p> {(text * 9)[:size]} <{n}p/>", str(n))
        for n, size in enumerate(sizes)
    ]


def asked(text: str = "<q> why? <q/>") -> Callable[[Sequence[Passage]], Sequence[str]]:
    return lambda passages: wording(text, passages)


def check(made: Plan, loaded: LoadedModel, exchanges: int = 0, passages: Sequence[Passage] = ()) -> None:
    """What holds for every plan: sums, bounds, and that nothing is lost without being told."""
    ledger = made.ledger
    assert ledger.prompt == len(made.prompt.ids) and ledger.context == loaded.context
    assert ledger.prompt + ledger.reply + ledger.free == ledger.context and ledger.free >= 0
    assert all(entry.tokens >= 0 and entry.kind in KINDS for entry in ledger.entries)
    assert {each.reason for each in ledger.left_out} <= set(REASONS)
    turns = [entry for entry in ledger.entries if entry.kind == "turn"]
    assert len(turns) == 2 * made.exchanges and made.exchanges + ledger.missing("exchange") == exchanges
    quoted = [(entry.title, entry.page) for entry in ledger.entries if entry.kind == "passage"]
    missing = [(each.title, each.page) for each in ledger.left_out if each.kind == "passage"]
    assert quoted + missing == [(passage.name, passage.page) for passage in passages]
    assert list(made.passages) == list(passages[: len(quoted)])
    assert json.loads(json.dumps(ledger.as_json()))["prompt"] == len(made.prompt.ids)


def check_whole(made: Plan, loaded: LoadedModel, exchanges: int, passages: Sequence[Passage]) -> None:
    """The newest exchanges and the best passages stand in the prompt from beginning to end, others don't."""
    text = loaded.tokenizer.decode(made.prompt.ids)
    marks = {f"{number}{role}": number >= exchanges - made.exchanges for number in range(exchanges) for role in "ua"}
    marks |= {f"{number}p": number < len(made.passages) for number in range(len(passages))}
    for mark, kept in (marks | {"q": True}).items():
        assert (f"<{mark}>" in text, f"<{mark}/>" in text) == (kept, kept), mark


# Every chat format


@pytest.mark.parametrize("name", FORM_NAMES)
def test_a_conversation_of_forty_turns_never_leaves_the_window(speaking: Callable[..., LoadedModel], name: str) -> None:
    loaded = speaking(name)
    kept = []
    for exchanges in (0, 1, 2, 5, 13, 40):
        made = plan(loaded, conversation(exchanges), asked(), system="<s> be kind <s/>")
        check(made, loaded, exchanges)
        check_whole(made, loaded, exchanges, ())
        assert len(made.prompt.ids) <= ROOM
        kept.append(made.exchanges)
    assert kept[:3] == [0, 1, 2] and 2 < kept[-1] < 40
    assert made.ledger.tokens("system") > 0 and made.ledger.tokens("frame") >= 0


@pytest.mark.parametrize("sizes", [(1,), (400, 400, 400, 400), (3000, 10, 10, 10), (10, 10, 10, 3000), (900,) * 4])
@pytest.mark.parametrize("name", FORM_NAMES)
def test_passages_of_every_size_beside_forty_turns(
    speaking: Callable[..., LoadedModel], name: str, sizes: tuple[int, ...]
) -> None:
    loaded, passages = speaking(name), found(*sizes)
    try:
        made = plan(loaded, conversation(40), asked(), passages)
    except QuestionTooLong as error:
        assert sizes[0] == 3000 and "The best passage takes" in str(error)
        return
    check(made, loaded, 40, passages)
    check_whole(made, loaded, 40, passages)
    assert len(made.prompt.ids) <= ROOM and made.passages and made.exchanges


@pytest.mark.parametrize("name", FORM_NAMES)
def test_a_passages_tokens_are_those_of_its_text(speaking: Callable[..., LoadedModel], name: str) -> None:
    loaded, passages = speaking(name), found(300, 40)
    made = plan(loaded, conversation(1), asked(), passages)
    entries = {entry.title or entry.kind: entry.tokens for entry in made.ledger.entries}
    instruction, *quoted, question = wording("<q> why? <q/>", passages)
    alone = {"instruction": instruction, "0.pdf": quoted[0], "1.pdf": quoted[1], "question": question}
    for title, text in alone.items():  # words are cut a little differently where texts meet
        assert abs(entries[title] - len(loaded.tokenizer.encode(text, "text"))) <= 3, title


@pytest.mark.parametrize("name", FORM_NAMES)
def test_a_system_prompt_longer_than_the_window_is_a_sentence(speaking: Callable[..., LoadedModel], name: str) -> None:
    with pytest.raises(QuestionTooLong) as caught:
        plan(speaking(name), conversation(3), asked(), system=" ".join(text_lines()) * 20)
    assert str(caught.value).startswith("The system prompt takes ") and "shorten it by" in str(caught.value)


@pytest.mark.parametrize("name", FORM_NAMES)
def test_a_question_of_the_length_that_is_told_fits(speaking: Callable[..., LoadedModel], name: str) -> None:
    loaded, text = speaking(name), " ".join(text_lines()) * 20
    with pytest.raises(QuestionTooLong, match=r"The question takes \d+ tokens") as caught:
        plan(loaded, (), asked(text))
    characters = int(str(caught.value).split(" about ")[1].split()[0])
    check(plan(loaded, (), asked(text[: characters * 9 // 10])), loaded)


@pytest.mark.parametrize("name", FORM_NAMES)
def test_a_window_that_the_format_alone_fills_is_a_sentence(speaking: Callable[..., LoadedModel], name: str) -> None:
    with pytest.raises(QuestionTooLong, match="shorten it by|longer window"):
        plan(speaking(name, window=8), conversation(2), asked(), system="be kind")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORM_NAMES), TEXTS, st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=3), TEXTS)
@example("chatglm", "", [], [], "")
@example("llama-2", " ", ["\n", ""], ["  "], "\n")
def test_whatever_is_written_the_sum_is_exact(
    speaking: Callable[..., LoadedModel], name: str, question: str, passages: list[str], history: list[str], system: str
) -> None:
    loaded = speaking(name)
    turns = [turn for text in history for turn in (Turn("user", text), Turn("assistant", text))]
    quoted = [Passage(f"{n}.txt", None, 1 - n / 10, text, "id") for n, text in enumerate(passages)]
    check(plan(loaded, turns, asked(question), quoted, system), loaded, len(history), quoted)


# Every budget. Here each byte is a token, so that what a part must take is known.

FRAME = len("user\n") + 2 + len("\n")  # of a turn, with its two control tokens


@st.composite
def budgets(draw: st.DrawFn) -> dict:
    sizes = st.integers(0, 120)
    return {
        "context": draw(st.integers(1, 900)),
        "history": draw(st.lists(st.tuples(sizes, sizes), max_size=12)),
        "passages": draw(st.lists(sizes, max_size=5)),
        "question": draw(sizes),
        "system": draw(st.one_of(st.none(), sizes)),
        "reply": draw(st.integers(1, 700)),
        "effort": Effort(draw(st.none() | st.integers(1, 5)), draw(st.none() | st.integers(0, 12))),
    }


@settings(max_examples=300, deadline=None)
@given(budgets())
def test_any_budget_is_kept_and_things_are_dropped_in_order(budget: dict) -> None:
    loaded = scripted(context=budget["context"])
    passages = [
        Passage(f"{n}", n, 1 - n / 10, f"<{n}p>" + "p" * size, "id") for n, size in enumerate(budget["passages"])
    ]
    history = [
        turn
        for number, (asks, replies) in enumerate(budget["history"])
        for turn in (Turn("user", f"<{number}u>" + "u" * asks), Turn("assistant", f"<{number}a>" + "a" * replies))
    ]
    system = None if budget["system"] is None else "s" * budget["system"]

    def words(passages: Sequence[Passage]) -> list[str]:
        return [*(["Use: "] if passages else []), *(each.text for each in passages), "?" * budget["question"]]

    def made(**more: object) -> Plan:
        return plan(loaded, history, words, passages, system, budget["reply"], **{"effort": budget["effort"]} | more)

    room = budget["context"] - reply_budget(budget["context"], budget["reply"])
    try:
        result = made()
    except QuestionTooLong:
        least = words(passages[:1])
        opening = [{"role": "system", "content": system}] if system else []
        assert len(loaded.chat_prompt([*opening, {"role": "user", "content": "".join(least)}]).ids) > room
        return
    check(result, loaded, len(budget["history"]), passages)
    assert len(result.prompt.ids) <= room
    check_bytes(result, budget, passages)
    check_order(result, budget, room, loaded, words, history, passages, system)


def check_bytes(made: Plan, budget: dict, passages: Sequence[Passage]) -> None:
    """Each part has the tokens that it must have, and is whole."""
    tokens = {kind: [entry.tokens for entry in made.ledger.entries if entry.kind == kind] for kind in KINDS}
    kept = budget["history"][len(budget["history"]) - made.exchanges :]
    sizes = [size + 3 + len(str(n)) for n, pair in enumerate(kept, len(budget["history"]) - len(kept)) for size in pair]
    roles = ["user", "assistant"] * len(kept)
    assert tokens["turn"] == [size + FRAME - 4 + len(role) for size, role in zip(sizes, roles, strict=True)]
    assert tokens["passage"] == [len(passage.text) for passage in made.passages]
    assert tokens["question"] == [budget["question"]]
    assert tokens["instruction"] == ([len("Use: ")] if made.passages else [])
    text = ByteTokenizer().decode(made.prompt.ids)
    assert all(passage.text in text for passage in made.passages)
    assert not any(f"<{passage.page}p>" in text for passage in passages[len(made.passages) :])


def check_order(made: Plan, budget: dict, room: int, loaded: LoadedModel, words, history, passages, system) -> None:
    """Nothing is left out while all has room, and nothing goes before what matters less."""

    def size(exchanges: int, quoted: int) -> int:
        turns = [*([Turn("system", system)] if system else []), *history[len(history) - 2 * exchanges :]]
        turns.append(Turn("user", "".join(words(passages[:quoted]))))
        return len(loaded.chat_prompt([turn.message() for turn in turns]).ids)

    effort, exchanges, quoted = budget["effort"], made.exchanges, len(made.passages)
    most = len(budget["history"]) if effort.exchanges is None else min(effort.exchanges, len(budget["history"]))
    assert exchanges <= most and quoted <= (len(passages) if effort.passages is None else effort.passages)
    reasons = [each.reason for each in made.ledger.left_out if each.kind == "exchange"]
    assert reasons == ["memory"] * (len(budget["history"]) - most) + ["room"] * (most - exchanges)
    if exchanges < most:  # where the window is filled anew, half of it stays free for what comes
        assert size(*((len(budget["history"]), len(passages)) if exchanges else (1, min(1, len(passages))))) > room
    dropped = [each for each in made.ledger.left_out if each.kind == "passage"]
    if dropped and dropped[0].reason == "room":
        assert size(min(exchanges, 1), quoted + 1) > room


def test_a_ledger_goes_on_when_a_reply_has_begun() -> None:
    made = plan(scripted(), [], asked())
    later = made.continued([1, 2, 3])
    check(later, scripted())
    assert later.reply == made.reply - 3 and later.prompt.ids == [*made.prompt.ids, 1, 2, 3]
    assert later.ledger.tokens("begun") == 3 and made.continued([]) is made


def test_a_ledger_as_json_holds_what_is_known() -> None:
    passages = found(40, 5000)
    made = plan(scripted(), conversation(1), asked(), passages, system="be kind")
    data = made.ledger.as_json()
    assert [entry["kind"] for entry in data["entries"]] == [
        *("frame", "system", "turn", "turn", "instruction", "passage", "question"),
    ]
    assert data["entries"][5] == {"kind": "passage", "tokens": data["entries"][5]["tokens"], **told(passages[0])}
    assert data["left_out"] == [{"kind": "passage", "reason": "room", **told(passages[1])}]
    assert sum(entry["tokens"] for entry in data["entries"]) == data["prompt"]
    assert data["prompt"] + data["reply"] + data["free"] == data["context"] == 2048


def told(passage: Passage) -> dict:
    return {"title": passage.name, "page": passage.page, "score": passage.score}


# Asking for less


@given(st.integers(0, 6), st.integers(0, 40), st.integers(1, 512))
def test_every_rung_of_the_ladder_asks_for_no_more_and_keeps_the_best_passage(
    passages: int, exchanges: int, chunk: int
) -> None:
    effort = Effort(passages, exchanges, chunk)
    for rung in LADDER:
        less = rung(effort)
        assert less.passages <= effort.passages and less.exchanges <= effort.exchanges and less.chunk <= effort.chunk
        assert min(passages, 1) <= less.passages and less.exchanges >= 0 and less.chunk >= 1
        effort = less
    assert (effort.passages, effort.exchanges) == (min(passages, 1), 0)


def test_an_empty_ledger_is_all_free() -> None:
    assert (Ledger(100, 25).prompt, Ledger(100, 25).used, Ledger(100, 25).free) == (0, 25, 75)
