"""What the page shows: nothing that is not ours acts, and every state has its words."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import gradio as gr
import pytest

from chatapp.checkpoints import DEFAULT_EMBEDDER, DEFAULT_MODEL
from chatapp.conversation import Plan
from chatapp.engine import Engine, Status
from chatapp.ledger import Entry, Ledger, LeftOut
from chatapp.library import Batch, Library
from chatapp.preferences import Preferences
from chatapp.session import Beside, Chat, Reply
from chatapp.settings import parse
from chatapp.startup import Fetching, Startup
from chatapp.store import Hit, Store, StoredMessage
from chatapp.texts import CATALOGUE, say
from chatapp.tree import Node, Tree
from chatapp.ui import budget, page, render, shelf
from chatapp.ui.conversations import Conversations
from chatapp.ui.documents import Documents
from chatapp.ui.model import Model
from chatapp.ui.section import Desk
from chatapp.words import Snippet
from knowledge import Ingested
from knowledge.database import State, StoredDocument
from models import End, Prompt, Read, Timings
from tests.fakes import HashEmbeddings

ATTACKS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "</details></article><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "[link](javascript:alert(1))",
    "![image](http://elsewhere.example/?secret)",
    "`code` *bold* _italic_ ~~gone~~",
    "$$\\frac{1}{2}$$ \\(x\\) \\[y\\]",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "&lt;script&gt; &#60; &amp;",
    "a\r\n\r\n# b\n\n- c",
]
OWN_TAGS = {"p", "br", "b", "ul", "ol", "li", "small", "span", "article", "header", "details", "summary", "progress"}
OWN_TAGS |= {"i", "table", "tr", "th", "td"}
OWN_ATTRIBUTES = {"class", "tabindex", "value", "max", "style", "scope", "aria-hidden"}
BETTER = ("a", [("href", "#q-models-0")])  #: the link that opens the sheet of the models


class Checked(HTMLParser):
    """Collects the text that would be seen; fails for a tag or an attribute that we don't write."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.seen = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if (tag, attributes) == BETTER:
            return
        assert tag in OWN_TAGS and {name for name, _ in attributes} <= OWN_ATTRIBUTES
        self.seen += "\n" if tag == "br" else ""

    def handle_data(self, data: str) -> None:
        self.seen += data


def check_inert(shown: str, text: str) -> None:
    """Our tags only, the text readable as it is, and no character left that Markdown or LaTeX would act on."""
    assert text.replace("\r\n", "\n") in Checked(shown).seen
    assert not re.search(r"[\\`*_$\[\]|~^]", shown)


def source(text: str = "A passage.", name: str = "a.pdf", number: int | None = 3) -> dict[str, object]:
    return {"name": name, "page": number, "score": 0.873, "text": text}


# Nothing acts


@pytest.mark.parametrize("text", ATTACKS)
def test_what_a_user_typed_is_shown_as_typed(text: str) -> None:
    check_inert(render.user(text), text)


@pytest.mark.parametrize(
    "text",
    [
        "# heading",
        "- item",
        "+ item",
        "1. one",
        "2) two",
        "---",
        "===",
        "www.a.example",
        "http://a.example",
        "a@b.example",
    ],
)
def test_no_heading_list_rule_or_link_is_made_of_what_was_typed(text: str) -> None:
    shown = render.user(text)
    assert Checked(shown).seen == text
    assert re.fullmatch(r"(\w|\s|/|&#\d+;)+", shown)  # letters, and characters by their number


def test_spaces_that_were_typed_stay() -> None:
    shown = render.user("  def f():\n\treturn  1")
    assert Checked(shown).seen == "\u00a0\u00a0def f():\n\u00a0\u00a0\u00a0\u00a0return\u00a0\u00a01"


def file(name: str, state: str, reason: str | None = None, version: int = 1) -> StoredDocument:
    return StoredDocument(name, "1f" * 32, 4, 9, ".pdf", 0.0, state, reason, None, 1, 1, version, 3)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_state_of_a_file_is_told(language: str) -> None:
    shown = {state: listing([file("a.pdf", state)], language) for state in get_args(State)}
    assert len(set(shown.values())) == 6 and all("a.pdf" in text for text in shown.values())
    assert "3" in shown["embedding"] and "9" in shown["embedding"] and "4" in shown["done"]
    assert "a.pdf needs a password." in listing([file("a.pdf", "failed", "a.pdf needs a password.")], language)
    assert "(2)" in listing([file("a.pdf", "done", version=2)], language)


def listing(files: list[StoredDocument], language: str = "en") -> str:
    return shelf.listing([shelf.Shelf("docs", files)], language)


@pytest.mark.parametrize("text", ATTACKS)
def test_file_names_are_inert(text: str) -> None:
    name = text.replace("\n", " ").replace("\r", " ")
    check_inert(render.sources_pane([source(name=name)], "en"), name)
    check_inert(render.assistant("", [source(name=name)], "zh").strip(), name)
    outcomes = [Ingested(name, "known"), Ingested(name, "failed", reason=f"{name} is bad")]
    check_inert(shelf.notes(outcomes, "en"), name)
    # Where a folder is told apart, the rest is the name.
    last = name.rpartition("/")[2]
    for each in (file(name, "done"), file(name, "failed", f"{name} is bad"), file(name, "embedding", version=2)):
        check_buttons(listing([each]), last)
    check_buttons(shelf.listing([shelf.Shelf(name, ()), shelf.Shelf(name, ())], "zh"), name)
    beside = [Beside("docs", "1f" * 32, name)]
    check_buttons(shelf.chips(beside, [file(name, "failed", f"{name} is bad")], "en"), last)
    check_buttons(shelf.target(name, [".pdf"], "en"), name)
    check_inert(render.asked(StoredMessage("user", "?", sources=(source(name=name),))), last)


class CheckedButtons(Checked):
    """The same, where buttons and links of ours are."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        allowed = {"href", "target", "rel", "title", "type", "aria-label"}
        for name, value in attributes:
            assert name in OWN_ATTRIBUTES | allowed or name.startswith("data-")
            assert name != "href" or value.startswith(("#q-summarise-", "/documents/docs/"))
        assert tag in OWN_TAGS | {"a", "button", "div", "h3"}


def check_buttons(shown: str, text: str) -> None:
    assert text in CheckedButtons(shown).seen
    assert not re.search(r"[\\`*_$|~^]", re.sub(r'target="_blank"', "", shown))


@pytest.mark.parametrize("text", ATTACKS)
def test_passages_are_inert(text: str) -> None:
    flat = " ".join(re.split(r"\n\s*\n", text)[0].split())
    check_inert(render.sources_pane([source(text)], "en"), flat)
    check_inert(render.assistant("", [source(text)], "en").strip(), flat)


@pytest.mark.parametrize("text", ATTACKS)
def test_sentences_about_failures_are_inert(text: str) -> None:
    check_inert(render.reply_message(Reply(state="failed", failure=text), "en")["content"], text)
    check_inert(render.engine_state(Status("failed", message=text), Fetching(), (), False, "en"), text)
    check_inert(render.engine_state(Status("empty"), Fetching(failure=text), (), False, "en"), text)
    check_inert(render.engine_state(Status("ready"), Fetching(failure=text), (), False, "en"), text)


@pytest.mark.parametrize("text", ATTACKS)
def test_names_of_models_are_inert(text: str) -> None:
    name = text.replace("\n", " ").replace("\r", " ")
    check_inert(render.engine_state(Status("loading", name), Fetching(), (), False, "en"), name)
    check_inert(render.engine_state(Status("ready", name), Fetching(), (), False, "zh"), name)


def test_a_warning_is_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(gr, "Warning", lambda text, **more: said.append(text))
    model = Model(desk_of(tmp_path))
    request = gr.Request(headers={"accept-language": "en"})
    list(model.choose_model("/x/<img src=x onerror=alert(1)>", "auto", request))
    check_inert(said[0], "<img src=x onerror=alert(1)> does not exist")


# The page's own defences for what the model writes


def desk_of(tmp_path: Path) -> Desk:
    settings = parse(["--data", str(tmp_path), "--lang", "en"], {})
    engine = Engine()
    chat = Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "c.db"))
    return Desk(settings, chat, Startup(settings, engine, lambda line: None))


def test_gradio_sanitises_what_the_model_writes(tmp_path: Path) -> None:
    blocks = page.build(desk_of(tmp_path), lambda key: CATALOGUE["en"][key])
    (messages,) = [block for block in blocks.blocks.values() if isinstance(block, gr.Chatbot)]
    assert messages.get_config()["sanitize_html"] is True


# What is shown


PASTED = [None, "", "  ", '""', "~nobody-of-this-name/x", "a\0b", "x" * 5000, "/no/such/folder"]


@pytest.mark.parametrize("chosen", PASTED)
def test_whatever_is_pasted_as_a_model_is_answered(
    tmp_path: Path, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(gr, "Warning", lambda text, **more: said.append(text))
    model = Model(desk_of(tmp_path))
    steps = list(model.choose_model(chosen, "auto", gr.Request(headers={})))
    assert len(steps) >= 1
    assert len(said) == (1 if (chosen or "").strip().strip('"') else 0)
    assert not any("\n" in sentence for sentence in said)


def test_a_reply_grows_and_then_shows_its_sources() -> None:
    reply = Reply(text="It is", state="writing", sources=[source()])
    assert render.reply_message(reply, "en") == {"role": "assistant", "content": "It is"}
    reply.state = "done"
    content = render.reply_message(reply, "en")["content"]
    assert content.startswith("It is\n\n<details") and "a.pdf · page 3" in content and "p. 3" in content


def test_a_reply_that_has_not_begun_shows_that_it_will() -> None:
    assert render.reply_message(Reply(), "en")["content"] == "…"
    assert render.reply_message(Reply(state="stopped"), "en")["content"] == ""


@pytest.mark.parametrize("language, words", [("en", "do not seem to say"), ("zh", "文档中似乎没有")])
def test_documents_that_do_not_say(language: str, words: str) -> None:
    assert words in render.reply_message(Reply(searched=True, state="done"), language)["content"]
    assert words not in render.reply_message(Reply(searched=True, state="done", text="yes"), language)["content"]


def test_a_failure_stands_below_what_was_written() -> None:
    content = render.reply_message(Reply(text="It is", state="failed", failure="The model failed."), "en")["content"]
    assert content == "It is\n\n⚠ The model failed."


@pytest.mark.parametrize(
    "text, closed",
    [
        ("```python\nx = 1", "```python\nx = 1\n```"),
        ("```\na\n```\nand\n````\nb\n```", "```\na\n```\nand\n````\nb\n```\n````"),
        ("~~~\nx\n```", "~~~\nx\n```\n~~~"),
        ("```\nwhole\n```", "```\nwhole\n```"),
        ("use ``` inside", "use ``` inside"),
        ("plain", "plain"),
    ],
)
def test_a_code_block_that_was_cut_does_not_swallow_the_sources(text: str, closed: str) -> None:
    assert render.assistant(text, [source()], "en").startswith(f"{closed}\n\n<details")
    failed = render.reply_message(Reply(text=text, state="failed", failure="It failed."), "en")["content"]
    assert failed == f"{closed}\n\n⚠ It failed."
    assert render.assistant(text, (), "en") == text


def test_a_kept_conversation_is_shown_as_it_was() -> None:
    stored = [
        StoredMessage("user", "why_?"),
        StoredMessage("assistant", "*because*", sources=(source(),)),
        StoredMessage("user", "and?"),
        StoredMessage("assistant", ""),
    ]
    shown = render.messages(stored, "en")
    assert [message["role"] for message in shown] == ["user", "assistant"] * 2
    assert shown[0]["content"] == "why&#95;?"
    assert shown[1]["content"].startswith("*because*\n\n<details")
    assert "There is no reply." in shown[3]["content"]


def chain(*messages: StoredMessage) -> Tree:
    return Tree().added(*(Node(at, at - 1 if at else None, message) for at, message in enumerate(messages)))


def actions(content: str) -> tuple[list[str], str]:
    """Where the links below a message lead, and all words there."""
    below = content.rpartition('<div class="acts')[2]
    return re.findall(r'href="#q-([a-z]+-\d+)"', below), re.sub("<[^>]*>", "", below.partition(">")[2])


def test_what_can_be_done_stands_below_each_message() -> None:
    stopped = StoredMessage("assistant", "It", state="stopped")
    tree = chain(StoredMessage("user", "a"), StoredMessage("assistant", "b"), StoredMessage("user", "c"), stopped)
    links, words = zip(*(actions(message["content"]) for message in render.branch(tree, "en")), strict=True)
    assert links == (["edit-0"], [], ["edit-2"], ["regenerate-3", "continue-3", "undo-3"])
    assert words[3] == "Stopped. Regenerate Continue Undo"


def test_versions_can_be_paged_through() -> None:
    tree = chain(StoredMessage("user", "a"), StoredMessage("assistant", "b"))
    tree = tree.added(Node(2, 0, StoredMessage("assistant", "c"))).added(Node(3, 0, StoredMessage("assistant", "d")))
    assert actions(render.branch(tree, "en")[1]["content"])[0][:1] == ["choose-2"]
    links, words = actions(render.branch(tree.chosen(2), "zh")[1]["content"])
    assert links[:2] == ["choose-1", "choose-3"] and words.startswith("‹ 2/3 ›")
    assert render.undone(tree, "en") == ""
    assert "#q-choose-0" in render.undone(tree.undone(), "en")


def test_a_code_block_that_was_left_open_does_not_take_the_links() -> None:
    tree = chain(StoredMessage("user", "a"), StoredMessage("assistant", "```python\nx", state="stopped"))
    assert "x\n```\n\n<div" in render.branch(tree, "en")[1]["content"]


@pytest.mark.parametrize(
    "message, words",
    [
        (StoredMessage("assistant", "", state="nothing_found"), "The documents do not seem to say anything"),
        (StoredMessage("assistant", "", state="failed", failure="It <broke>."), "⚠ It &#60;broke&#62;."),
        (StoredMessage("assistant", "It", state="failed", failure="It broke."), "It\n\n⚠ It broke."),
        (StoredMessage("assistant", "", state="interrupted"), "There is no reply."),
        (StoredMessage("assistant", "", state="writing"), "*Being written in another window; reload to see it.*"),
        (StoredMessage("assistant", "```\nx", state="writing"), "```\nx\n```\n\n*Being written in another window;"),
    ],
)
def test_how_a_kept_reply_ended_is_shown(message: StoredMessage, words: str) -> None:
    assert words in render.messages([message], "en")[0]["content"]


def test_a_hit_is_shown_in_two_lines() -> None:
    found = Hit("id", "Title", 7, Snippet("before ", "hit", " behind"))
    assert render.hit(found, "en") == ("Title\nbefore hit behind", "id/7")
    assert render.hit(Hit("id", "", None, Snippet("", "", "")), "en") == ("Untitled", "id")


def test_a_passage_flows_and_keeps_its_paragraphs() -> None:
    assert render.flowing("one\ntwo\n \nthree\n") == "one two<br>three"


def test_a_source_without_a_page_shows_none() -> None:
    card = render.sources_pane([source(number=None)], "en")
    assert "page" not in card and "a.pdf" in card and "score 0.87" in card
    assert render.sources_pane([], "en") != ""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_state_of_a_reply_has_its_line(language: str) -> None:
    timings = Timings(prompt_tokens=10, reused=0, read_seconds=0.5, tokens=11, write_seconds=2.0)
    plan = plan_of(Ledger(2048, 100, (Entry("question", 34),), (LeftOut("exchange", "memory"),)))
    replies = {
        "looking": Reply(),
        "waiting": Reply(ahead=2),
        "reading": Reply(state="reading", read=Read(1200, 3400)),
        "writing": Reply(state="writing"),
        "stopped": Reply(state="stopped"),
        "done": Reply(state="done", end=End("stop", timings)),
        "cut": Reply(state="done", end=End("length", timings), plan=plan),
        "loop": Reply(state="done", end=End("loop", timings)),
    }
    lines = {name: Checked(render.progress_line(reply, language)).seen for name, reply in replies.items()}
    assert len(set(lines.values())) == len(lines) and all(lines.values())
    assert "2" in lines["waiting"] and "1,200" in lines["reading"] and "3,400" in lines["reading"]
    assert "5.0" in lines["done"] and "11" in lines["done"]  # ten more tokens in two seconds
    assert CATALOGUE[language]["cut_loop"] in lines["loop"]
    assert lines["cut"].startswith(lines["done"]) and CATALOGUE[language]["budget_memory"] in lines["cut"]


def plan_of(ledger: Ledger) -> Plan:
    return Plan(Prompt([], [], frozenset(), ()), (), 0, ledger)


LEDGER = Ledger(
    2048,
    512,
    (
        Entry("frame", 5),
        Entry("system", 20),
        Entry("turn", 31, "First?", "user"),
        Entry("turn", 29, "Yes.", "assistant"),
        Entry("instruction", 17),
        Entry("passage", 1000, "a.pdf", page=3, score=0.873),
        Entry("question", 8),
    ),
    (*(LeftOut("exchange", "room", f"Old {n}") for n in range(20)), LeftOut("passage", "memory", "b.pdf", 7, 0.4)),
)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_budget_lists_every_part_and_what_was_left_out(language: str) -> None:
    shown = budget.bar(LEDGER, language)
    seen = Checked(shown).seen
    for number in ("1,622", "2,048", "1,000", "512", "426", "First?", "a.pdf", "0.87", "b.pdf", "7"):
        assert number in seen
    line = seen.split(CATALOGUE[language]["spent_frame"])[0]
    assert "20" in line and line.count("1") >= 1
    assert "Old 19" in seen and "Old 0" not in seen and "9" in seen  # of 21 the last twelve are shown
    assert {size for size in re.findall(r"flex-grow:(\d+)", shown)} == {"25", "60", "1017", "8", "512", "426"}


def test_the_budget_stands_below_the_progress_of_a_reply_that_has_a_plan() -> None:
    assert "budget" not in render.progress_line(Reply(), "en")
    writing = render.progress_line(Reply(state="writing", plan=plan_of(LEDGER)), "en")
    assert "1,622 of 2,048 tokens · older exchanges left out: 20" in Checked(writing).seen


@pytest.mark.parametrize("text", ATTACKS)
def test_what_the_budget_names_is_inert(text: str) -> None:
    name = text.replace("\n", " ").replace("\r", " ")
    for kind in ("turn", "passage"):
        entry = Entry(kind, 1, name, "user" if kind == "turn" else None)
        check_inert(budget.bar(Ledger(64, 1, (entry,)), "en"), name)
    for kind in ("exchange", "passage"):
        check_inert(budget.bar(Ledger(64, 1, (), (LeftOut(kind, "room", name),)), "zh"), name)


def test_a_reply_of_one_token_has_no_speed() -> None:
    timings = Timings(prompt_tokens=10, reused=0, read_seconds=0.5, tokens=1, write_seconds=0.0)
    assert "0.0" in render.progress_line(Reply(state="done", end=End("stop", timings)), "en")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_state_of_the_engine_has_its_words(language: str) -> None:
    fetching = render.engine_state(Status("empty"), Fetching("SmolLM2", 30_000_000, 90_000_000), (), False, language)
    assert "30" in Checked(fetching).seen and "90" in Checked(fetching).seen and "<progress" in fetching
    loading = render.engine_state(Status("loading", "m", 1, 0), Fetching(), (), False, language)
    assert 'max="1"' in loading
    empty = render.engine_state(Status("empty"), Fetching(), (), False, language)
    ready = render.engine_state(Status("ready", "m"), Fetching(), (), False, language)
    small = render.engine_state(Status("ready", "m"), Fetching(), (), True, language)
    assert len({fetching, loading, empty, ready, small}) == 5 and "m" in Checked(ready).seen


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_follows_a_fetch_is_said(language: str) -> None:
    model = render.engine_state(Status("empty"), Fetching(DEFAULT_MODEL, 1, 2), (), False, language)
    embedder = render.engine_state(Status("ready", "m"), Fetching(DEFAULT_EMBEDDER, 1, 2), (), True, language)
    assert say(language, "fetching_model_then") in Checked(model).seen
    assert say(language, "fetching_embedder_then") in Checked(embedder).seen
    assert "<progress" in embedder and "m" in Checked(embedder).seen  # that one can chat meanwhile is not hidden
    assert "[" not in Checked(embedder).seen  # sentences, and no list of them


def test_what_could_not_be_fetched_leaves_ways_on() -> None:
    failed = render.engine_state(Status("empty"), Fetching(failure="No network."), (), False, "en")
    assert "No network." in failed and say("en", "ways_on") in failed and 'href="#q-models-0"' in failed


# Formulas


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("So $E = mc^2$ holds, and $x$.", r"So \(E = mc^2\) holds, and \(x\)."),
        ("质能方程$E=mc^2$成立", r"质能方程\(E=mc^2\)成立"),
        ("It costs $5 and $10, or US$3.", "It costs $5 and $10, or US$3."),
        ("`$x$` and\n```\n$y$\n```\nbut $z$", "`$x$` and\n```\n$y$\n```\nbut \\(z\\)"),
        ("$$a$$ and \\$b\\$", "$$a$$ and \\$b\\$"),
    ],
)
def test_formulas_between_single_dollars_are_drawn(written: str, shown: str) -> None:
    (message,) = render.messages([StoredMessage("assistant", written)], "en")
    assert message["content"] == shown


# Quotes


@pytest.mark.parametrize("text", ATTACKS)
def test_a_quote_and_what_was_searched_for_are_inert(text: str) -> None:
    quote = {"name": text.replace("\r\n", " "), "page": 2, "start": 0, "end": 1, "text": "words", "draft": True}
    kept = StoredMessage("assistant", "", failure="x", evidence={"quote": quote, "searched_for": "a", "chat": True})
    (shown,) = render.messages([kept], "en")
    check_inert(shown["content"].partition("</article>")[0] + "</article>", quote["name"])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("draft", [True, False])
def test_a_quote_stands_above_the_reply_and_a_small_models_text_is_called_a_draft(language: str, draft: bool) -> None:
    quote = {"name": "a.pdf", "page": 3, "start": 5, "end": 10, "text": "Said so.", "draft": draft}
    kept = StoredMessage("assistant", "The text", evidence={"quote": quote})
    (shown,) = render.messages([kept], language)
    seen = Checked(shown["content"]).seen
    assert seen.index(CATALOGUE[language]["quote"]) < seen.index("a.pdf") < seen.index("Said so.")
    assert seen.index("Said so.") < seen.index("The text")
    assert (CATALOGUE[language]["draft"] in seen) is draft


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_nearest_stands_below_that_the_documents_do_not_say(language: str) -> None:
    quote = {"name": "a.pdf", "page": 3, "start": 5, "end": 10, "text": "Said so.", "draft": False, "nearest": True}
    kept = StoredMessage("assistant", "", state="nothing_found", evidence={"quote": quote})
    (shown,) = render.messages([kept], language)
    order = [CATALOGUE[language][key] for key in ("nothing_found", "nearest")] + ["a.pdf", "Said so."]
    seen = Checked(shown["content"]).seen
    assert sorted(order, key=seen.index) == order and CATALOGUE[language]["quote"] not in seen


def test_each_part_of_a_quote_stands_below_its_place() -> None:
    parts = [
        {"name": "a.pdf", "page": 3, "start": 5, "end": 13, "text": "Said so."},
        {"name": "b.pdf", "page": 7, "start": 0, "end": 9, "text": "So <said>."},
    ]
    quote = {**parts[0], "text": "Said so. … So <said>.", "draft": False, "parts": parts}
    kept = StoredMessage("assistant", "The text", evidence={"quote": quote})
    (shown,) = render.messages([kept], "en")
    seen = Checked(shown["content"]).seen
    order = ["a.pdf", "page 3", "Said so.", "b.pdf", "page 7", "So <said>.", "The text"]
    assert sorted(order, key=seen.index) == order and "…" not in seen


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_kept_reply_that_repeated_itself_says_so(language: str) -> None:
    messages = [StoredMessage("user", "hi"), StoredMessage("assistant", "so so", reason="loop")]
    tree = Tree({0: Node(0, None, messages[0]), 1: Node(1, 0, messages[1])}, 1)
    shown = render.branch(tree, language)[-1]["content"]
    assert CATALOGUE[language]["cut_loop"] in shown and CATALOGUE[language]["continue"] in shown


def test_files_that_could_not_be_read_are_not_ready() -> None:
    batches = [Batch(3, 1, 1, 0.7, None), Batch(2, 1, 1, 0.9, None)]
    assert "2 of 5 files are ready · 2 could not be read<" in shelf.working(batches, "en")
    assert "2 / 5" in (shown := shelf.working(batches, "zh")) and "2 个无法读取" in shown
    assert "read<" not in shelf.working([Batch(3, 1, 0, 0.7, None)], "en")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_search_without_a_hit_says_so(tmp_path: Path, language: str) -> None:
    desk = desk_of(tmp_path)
    desk.chat.store.insert("Lease", Preferences(), chain(StoredMessage("user", "hi")))
    request = gr.Request(headers={"accept-language": language}, session_hash="s")
    desk.chat.choose_for_all(language=language)
    searching = Conversations(desk, Documents(desk))
    shown = {text: searching.search(text, None, request) for text in ("zebra", "lease", "")}
    assert shown["zebra"]["choices"] == [] and shown["zebra"]["info"] == CATALOGUE[language]["search_nothing"]
    assert [shown[text]["info"] for text in ("lease", "")] == ["", ""] and shown["lease"]["choices"]


def test_one_page_and_one_file_are_singular() -> None:
    one, four = (replace(file("a.pdf", "done"), pages=pages) for pages in (1, 4))
    shown = shelf.listing([shelf.Shelf("a", [one]), shelf.Shelf("b", [four, one])], "en")
    assert re.findall(r"\b\d pages?\b", shown) == ["1 page", "4 pages", "1 page"]
    assert re.findall(r"\b\d files?\b", shown) == ["1 file", "2 files"]
