"""What goes into the window: exact tokens, whole turns, and what is left out is said."""

from collections.abc import Callable, Sequence

import pytest

from chatapp.answering import wording
from chatapp.conversation import Plan, QuestionTooLong, Turn, plan, reply_budget
from chatapp.words import whole_characters
from knowledge import Passage
from models import LoadedModel
from tests.fakes import REPLY_STARTS, ByteTokenizer, scripted

CONTEXT = 400
ROOM = CONTEXT - 100  # a quarter is kept free for the reply


def passage(number: int, size: int = 40) -> Passage:
    return Passage(f"{number}.pdf", number, 1 - number / 10, f"<{number}>" + "p" * size, "id")


def exchange(number: int, size: int = 10) -> list[Turn]:
    return [Turn("user", f"({number})" + "u" * size), Turn("assistant", "a" * size)]


def history(*sizes: int) -> list[Turn]:
    return [turn for number, size in enumerate(sizes) for turn in exchange(number, size)]


def asking(text: str = "why?") -> Callable[[Sequence[Passage]], list[str]]:
    """The question alone, or behind an instruction and the passages."""
    return lambda passages: [*(["Use: "] if passages else []), *(passage.text for passage in passages), text]


def text_of(made: Plan) -> str:
    return ByteTokenizer().decode(made.prompt.ids)


@pytest.fixture
def loaded() -> LoadedModel:
    return scripted(context=CONTEXT)


def test_everything_goes_in_when_there_is_room(loaded: LoadedModel) -> None:
    made = plan(loaded, history(5, 5), asking(), [passage(1), passage(2)], system="be kind")
    assert (made.dropped_turns, made.dropped_passages) == (0, 0)
    assert made.passages == (passage(1), passage(2))
    expected = ["be kind", "(0)uuuuu", "(1)uuuuu", "<1>", "<2>", "why?"]
    places = [text_of(made).find(part) for part in expected]
    assert places == sorted(places) and -1 not in places
    assert text_of(made).endswith("assistant\n")


@pytest.mark.parametrize("exchanges", [0, 1, 3, 20])
@pytest.mark.parametrize("passages", [0, 1, 4])
@pytest.mark.parametrize("size", [1, 17, 60])
@pytest.mark.parametrize("asked", [1, 30])
def test_the_prompt_never_takes_the_replys_place(
    loaded: LoadedModel, exchanges: int, passages: int, size: int, asked: int
) -> None:
    found = [passage(number, size) for number in range(passages)]
    made = plan(loaded, history(*[size] * exchanges), asking("?" * asked), found, system="be kind")
    assert len(made.prompt.ids) <= ROOM
    assert len(made.prompt.ids) + made.reply <= CONTEXT
    assert "be kind" in text_of(made) and "?" * asked in text_of(made)
    assert len(made.prompt.spans) == 2 * (exchanges - made.dropped_turns) + 2
    assert len(made.passages) == passages - made.dropped_passages


def test_every_turn_is_whole_or_not_there_and_the_newest_stay(loaded: LoadedModel) -> None:
    made = plan(loaded, history(*[20] * 30), asking())
    kept = [number for number in range(30) if f"({number})" in text_of(made)]
    assert kept == list(range(made.dropped_turns, 30)) and 0 < made.dropped_turns < 30
    assert text_of(made).count("u" * 20 + "\n") == text_of(made).count("a" * 20 + "\n") == len(kept)
    assert ROOM / 2 - 80 < len(made.prompt.ids) <= ROOM  # an exchange takes about 80


def test_an_older_exchange_does_not_slip_in_past_one_that_was_left_out(loaded: LoadedModel) -> None:
    made = plan(loaded, history(5, 250, 5), asking())
    assert made.dropped_turns == 2
    assert "(2)" in text_of(made) and "(0)" not in text_of(made)


def test_passages_are_dropped_from_the_lowest(loaded: LoadedModel) -> None:
    made = plan(loaded, [], asking(), [passage(number, 100) for number in range(4)])
    assert made.passages == (passage(0, 100), passage(1, 100)) and made.dropped_passages == 2
    assert "<1>" in text_of(made) and "<2>" not in text_of(made)


def test_the_newest_exchange_comes_before_all_but_the_best_passage(loaded: LoadedModel) -> None:
    made = plan(loaded, history(20, 20), asking(), [passage(number, 60) for number in range(4)])
    assert "(1)" in text_of(made) and "(0)" not in text_of(made)
    assert len(made.passages) == 3


def test_a_huge_newest_exchange_does_not_cost_the_passages(loaded: LoadedModel) -> None:
    made = plan(loaded, history(5, 1000), asking(), [passage(1), passage(2)])
    assert made.passages == (passage(1), passage(2))
    assert made.dropped_turns == 2


def test_a_question_that_is_too_long_is_a_sentence_with_numbers(loaded: LoadedModel) -> None:
    frame = len(plan(loaded, [], asking("")).prompt.ids)
    assert len(plan(loaded, [], asking("?" * (ROOM - frame))).prompt.ids) == ROOM
    with pytest.raises(QuestionTooLong) as caught:
        plan(loaded, history(5), asking("?" * (ROOM - frame + 7)))
    allowed = ROOM - frame
    assert str(caught.value) == (
        f"The question takes {allowed + 7} tokens and the window has room for {allowed}, about {allowed // 10 * 10} "
        "characters; shorten it by 7 tokens."
    )


def test_documents_are_not_answered_without_a_passage(loaded: LoadedModel) -> None:
    with pytest.raises(QuestionTooLong, match=r"best passage takes \d+ tokens"):
        plan(loaded, [], asking(), [passage(1, 500)])


def test_a_reply_may_use_the_room_that_the_prompt_leaves(loaded: LoadedModel) -> None:
    made = plan(loaded, [], asking(), reply=10_000)
    assert len(made.prompt.ids) + made.reply == CONTEXT
    assert plan(loaded, [], asking(), reply=5).reply == 5


@pytest.mark.parametrize("context, wanted, reserved", [(8192, 512, 512), (1024, 512, 256), (2, 512, 1), (8192, 5, 5)])
def test_the_reply_gets_what_is_wanted_or_a_quarter(context: int, wanted: int, reserved: int) -> None:
    assert reply_budget(context, wanted) == reserved


def test_a_long_conversation_costs_no_more_than_the_window(loaded: LoadedModel, monkeypatch) -> None:
    rendered = []
    monkeypatch.setattr(
        LoadedModel,
        "chat_prompt",
        lambda self, messages, whole=LoadedModel.chat_prompt: rendered.append(len(messages)) or whole(self, messages),
    )
    plan(loaded, history(*[20] * 5000), asking())
    assert sum(rendered) < 100


def test_a_replys_own_ids_go_back_unchanged(loaded: LoadedModel) -> None:
    written = (255, 254, 104, 105)  # no text would be encoded so
    made = plan(loaded, [Turn("user", "hi"), Turn("assistant", "hi", written)], asking())
    start, stop = made.prompt.spans[1]
    assert made.prompt.ids[start + len(REPLY_STARTS) : stop - 2] == [*written]  # behind it the frame's end


def test_ids_are_for_the_model_that_wrote_them() -> None:
    turn = Turn("assistant", "hi", (1, 2), "one")
    assert turn.seen_by("one", 9).ids == (1, 2)
    assert turn.seen_by("one", 2).ids is None
    assert turn.seen_by("another", 9) == Turn("assistant", "hi", None, "one")


def test_a_history_that_starts_with_a_reply_is_kept_too(loaded: LoadedModel) -> None:
    made = plan(loaded, [Turn("assistant", "welcome"), Turn("user", "hi"), Turn("assistant", "yes?")], asking())
    assert "welcome" in text_of(made) and len(made.prompt.spans) == 4


@pytest.mark.parametrize("question, words", [("What is it?", "page 3"), ("这是什么？", "第3页")])
def test_passages_are_numbered_with_file_and_page_in_the_questions_language(question: str, words: str) -> None:
    text = "".join(
        wording(question, [Passage("a.pdf", 3, 0.9, "First.", "id"), Passage("b.md", None, 0.8, "Second.", "id")])
    )
    first, second = text.index("[1]"), text.index("[2]")
    assert words in text[first:second] and "First." in text[first:second]
    assert "b.md" in text[second:] and "page" not in text[second:] and "第" not in text[second:]
    assert text.rstrip().endswith(question)


def test_braces_in_a_question_or_a_name_are_no_placeholders() -> None:
    text = "".join(wording("What is {0} {name}?", [Passage("{page}.pdf", 1, 0.9, "{text}", "id")]))
    assert "{0} {name}" in text and "({page}.pdf, page 1)" in text and "{text}" in text


def test_half_a_character_becomes_a_question_mark() -> None:
    assert whole_characters("a\ud83db 好😀") == "a?b 好😀"
