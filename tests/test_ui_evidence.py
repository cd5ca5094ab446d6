"""Citations on the page: numbers in a reply, and the panel behind them; they are there again after a restart."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chatapp.citing import Citing, Evidence
from chatapp.library import Library
from chatapp.preferences import Preferences, Retrieving
from chatapp.session import Chat
from chatapp.store import Store, StoredMessage
from chatapp.texts import CATALOGUE
from chatapp.ui import evidence, render
from chatapp.ui.evidence import View
from knowledge import Passage
from knowledge.cite import Citation, Cited, Problem, Span
from tests.fakes import HashEmbeddings, ready_engine, scripted

PDF = Path(__file__).parent / "data" / "pdf" / "zh_poems.pdf"
LINE = "忽然太行雪，昨夜飞入来。"
REPLY = f"好的。{LINE}月亮是绿色的奶酪做的。昨夜没有飞入来雪。"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "kb", HashEmbeddings)
    library.create("诗 <b>")
    note = tmp_path / "note.md"
    note.write_text("# Rent\n\nThe rent of the flat is 1,200 <i>francs</i> a month.\n", encoding="utf-8")
    library.open("诗 <b>").ingest([PDF, note])
    return library


@pytest.fixture
def chat(library: Library, tmp_path: Path) -> Chat:
    return Chat(ready_engine(scripted(REPLY, context=20_000)), library, Store(tmp_path / "conversations.db"))


def asked(chat: Chat, question: str) -> tuple[str, StoredMessage, int]:
    conversation = chat.store.create().id
    *_, reply = chat.send(conversation, question, "诗 <b>", threading.Event())
    assert reply.state == "done", reply.failure
    tree = chat.store.tree(conversation)
    return conversation, tree[tree.leaf].message, tree.leaf


def test_a_reply_is_cited_while_it_streams_and_kept_with_its_citations(chat: Chat, tmp_path: Path) -> None:
    conversation, message, _ = asked(chat, "太行雪昨夜飞入来是谁写的？")
    found = Evidence.from_json(message.evidence)
    chatter, first, moon, denied = found.cited
    assert chatter.citation.chatter and first.citation.supported
    assert REPLY[first.start : first.end] == LINE
    span = first.citation.spans[0]
    assert LINE[:-1] in message.sources[span.passage - 1]["text"][span.start : span.end]
    assert not moon.citation.supported and not denied.citation.supported
    assert found.base == "诗 <b>" and len(found.documents) == len(message.sources)
    again = Store(tmp_path / "conversations.db").messages(conversation)[-1]
    assert Evidence.from_json(again.evidence) == found


@pytest.mark.parametrize("end", ["length", "stopped"])
def test_a_sentence_that_was_cut_off_is_not_cited(chat: Chat, end: str) -> None:
    whole = [Evidence.from_json(asked(chat, "太行雪昨夜飞入来是谁写的？")[1].evidence).cited[at] for at in (0, 1)]
    upto = REPLY[: whole[1].end - 3]
    conversation = chat.store.create(Preferences(max_tokens=len(upto.encode()) if end == "length" else None)).id
    cancel = threading.Event()
    for reply in chat.send(conversation, "太行雪昨夜飞入来是谁写的？", "诗 <b>", cancel):
        if end == "stopped" and reply.text == upto:
            cancel.set()
    assert (reply.text, reply.evidence.cited) == (upto, whole[:1])


PASSAGE = Passage("a.txt", 1, 1.0, "The rent is 1,200 francs a month. It is due on the first day of it.", "")


def cited(text: str, cut: bool) -> list[str]:
    """The sentences that are supported."""
    citing = Citing(None, [PASSAGE])
    for letter in text:
        citing.feed(letter)
    assert all("\ufffd" not in text[each.start : each.end] for each in citing.so_far())
    return [text[each.start : each.end] for each in citing.end(cut) if each.citation.supported]


RENT = "The rent is 1,200 francs a month"


@pytest.mark.parametrize("text", [RENT, f"{RENT}. The rent is 1,200 francs", "The rent is 1."])
def test_only_of_a_reply_that_was_cut_off_the_last_sentence_may_be_half(text: str) -> None:
    said = cited(text, cut=False)
    assert cited(text, cut=True) == [each for each in said if each == f"{RENT}."]


@pytest.mark.parametrize("text", [f"{RENT}.", f"- {RENT}\n", f"{RENT}.\n\n"])
def test_a_sentence_that_has_its_end_is_cited_where_a_reply_was_cut_off(text: str) -> None:
    assert cited(text, cut=True) == cited(text, cut=False) != []


def test_a_damaged_sentence_is_not_cited() -> None:
    assert cited(f"{RENT} \ufffd. {RENT}.", cut=False) == [f"{RENT}."]


def test_a_plain_chat_has_no_citations(chat: Chat) -> None:
    conversation = chat.store.create().id
    for _ in chat.send(conversation, "hi", None, threading.Event()):
        pass
    assert chat.store.messages(conversation)[-1].evidence is None


def test_evidence_is_the_same_after_json() -> None:
    citation = Citation((Span(1, 2, 3),), False, (Problem("number", "7"),))
    whole = Evidence("base", ["document"], [Cited(0, 5, citation), Cited(5, 9, Citation(chatter=True))])
    assert Evidence.from_json(json.loads(json.dumps(whole.as_json()))) == whole


# Marks in the text


def marked(text: str, *cited: tuple[str, Citation]) -> str:
    places = [Cited(text.index(part), text.index(part) + len(part), citation) for part, citation in cited]
    return evidence.marked(text, Evidence("b", ["d"], places), 7, "en")


YES, NO = Citation((Span(2, 0, 1),), supported=True), Citation()


def test_a_supported_sentence_is_followed_by_its_number() -> None:
    shown = marked("- One is so.\n- Two.", ("One is so.", YES))
    assert (
        shown == '- One is so.<a class="mark" href="#q-cite-7-0" title="Show this passage on its page">[2]</a>\n- Two.'
    )


def test_an_unsupported_sentence_is_dotted_and_chatter_left_alone() -> None:
    shown = marked("Sure. The *moon* is green.", ("Sure.", Citation(chatter=True)), ("The *moon* is green.", NO))
    assert shown.startswith('Sure. <span class="unsupported"') and shown.endswith("The *moon* is green.</span>")


@pytest.mark.parametrize("sentence", ["**Bold goes on.", "Some `code.", "An [open link.", "A < b."])
def test_markdown_that_goes_on_is_not_torn_apart(sentence: str) -> None:
    assert marked(sentence, (sentence, NO)).startswith(f'{sentence}<sup class="unsupported"')


def test_a_problem_is_told_and_escaped() -> None:
    citation = Citation((Span(1, 0, 1),), False, (Problem("name", '"><script>'),))
    shown = marked("It is so.", ("It is so.", citation))
    assert "does not name" in shown and "<script>" not in shown and '"><' not in shown


def test_what_does_not_fit_the_text_any_more_is_left_out() -> None:
    assert evidence.marked("Short.", Evidence("b", ["d"], [Cited(3, 400, YES)]), 7, "en") == "Short."


# The panel


def views(stored: StoredMessage) -> Sequence[int]:
    return [at for at, _ in Evidence.from_json(stored.evidence).citations]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_panel_shows_the_page_with_its_highlight(chat: Chat, language: str) -> None:
    _, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    shown = evidence.panel(message, View(number, views(message)[0]), chat.library, language)
    assert '/pages/1.png?scale=2.0"' in shown and 'class="exact"' in shown and 'class="passage"' in shown
    assert "/original#page=1" in shown and f"#q-cite-{number}-{views(message)[0]}-2" in shown
    assert "诗 <b>" not in shown
    assert CATALOGUE[language]["open_original"] in shown


def test_another_page_is_shown_without_a_highlight(chat: Chat) -> None:
    _, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    shown = evidence.panel(message, View(number, views(message)[0], 2), chat.library, "en")
    assert "/pages/2.png" in shown and "<rect" not in shown
    far = evidence.panel(message, View(number, views(message)[0], 999), chat.library, "en")
    assert "/pages/6.png" in far


def test_a_file_without_pages_is_shown_around_the_passage(library: Library, tmp_path: Path) -> None:
    said = "The rent of the flat is 1,200 <i>francs</i> a month."
    chat = Chat(ready_engine(scripted(said, context=20_000)), library, Store(tmp_path / "conversations.db"))
    _, message, number = asked(chat, "What is the rent of the flat a month?")
    shown = evidence.panel(message, View(number, views(message)[0]), library, "en")
    assert "Rent" in shown and "<mark>The rent of the flat" in shown and "<i>francs" not in shown


def test_what_is_gone_is_said(chat: Chat) -> None:
    _, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    view = View(number, views(message)[0])
    assert "is not there any more" in evidence.panel(message, replace(view, at=99), chat.library, "en")
    assert "is not there any more" in evidence.panel(replace(message, evidence=None), view, chat.library, "en")
    chat.library.open("诗 <b>").remove(PDF.name)
    assert "not in its knowledge base any more" in evidence.panel(message, view, chat.library, "en")


@pytest.mark.parametrize("kind", ["source", "quote"])
def test_a_source_and_a_quote_have_their_page(chat: Chat, kind: str) -> None:
    _, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    shown = evidence.panel(message, View(number, 1, kind=kind), chat.library, "en")
    assert "/pages/1.png" in shown and 'class="exact"' in shown and 'class="passage"' not in shown
    assert f"#q-{kind}-{number}-1-2" in shown and f"{kind.title()} 1 of " in shown
    other = evidence.panel(message, View(number, 1, 2, kind), chat.library, "en")
    assert "/pages/2.png" in other and "<rect" not in other
    assert "is not there any more" in evidence.panel(message, View(number, 99, kind=kind), chat.library, "en")


def test_the_nearest_passages_lead_to_their_pages_where_the_documents_do_not_say(chat: Chat) -> None:
    conversation = chat.store.create().id
    chat.store.prefer(conversation, Preferences(retrieval=Retrieving(threshold=1)))
    *_, reply = chat.send(conversation, "太行雪的租金是多少？", "诗 <b>", threading.Event())
    assert reply.nothing_found and not reply.text and len(reply.sources) > 1
    tree = chat.store.tree(conversation)
    messages, pane, _ = render.conversation(tree, "en")
    for number, source in enumerate(reply.sources, start=1):
        assert f'href="#q-source-{tree.leaf}-{number}"' in pane and f'href="#q-source-{tree.leaf}-{number}"' in str(
            messages
        )
        shown = evidence.panel(tree[tree.leaf].message, View(tree.leaf, number, kind="source"), chat.library, "en")
        assert (f"/pages/{source['page']}.png" in shown) if source["page"] else ("<mark>" in shown)


def test_a_quote_of_two_places_leads_to_each_of_them(chat: Chat) -> None:
    conversation, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    kept = message.evidence["quote"]
    second = {**kept["parts"][0], "name": "note.md", "page": None, "text": "The rent of the flat"}
    second["document"] = next(file.id for file in chat.library.open("诗 <b>").documents() if file.name == "note.md")
    both = replace(message, evidence={**message.evidence, "quote": {**kept, "parts": [kept["parts"][0], second]}})
    shown = evidence.panel(both, View(number, 2, kind="quote"), chat.library, "en")
    assert "Quote 2 of 2" in shown and "<mark>The rent of the flat</mark>" in shown and f"#q-quote-{number}-1" in shown
    chat.store.update(number, both)
    head = render.branch(chat.store.tree(conversation), "en")[-1]["content"]
    assert f'href="#q-quote-{number}-1"' in head and f'href="#q-quote-{number}-2"' in head


def test_a_quote_that_was_kept_without_its_document_has_no_link(chat: Chat) -> None:
    conversation, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    old = {name: message.evidence["quote"][name] for name in ("name", "page", "start", "end", "text", "draft")}
    chat.store.update(number, replace(message, evidence={**message.evidence, "quote": old}))
    head = render.branch(chat.store.tree(conversation), "en")[-1]["content"]
    assert "#q-quote" not in head and old["text"].splitlines()[0] in head


def test_a_kept_conversation_shows_its_marks_again(chat: Chat) -> None:
    conversation, message, number = asked(chat, "太行雪昨夜飞入来是谁写的？")
    shown = render.branch(chat.store.tree(conversation), "zh")[-1]["content"]
    assert f'href="#q-cite-{number}-{views(message)[0]}"' in shown and 'class="unsupported"' in shown
