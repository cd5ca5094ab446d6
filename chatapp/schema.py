"""The tables of the conversations' file, and how files of former versions become the present one."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from .words import indexed

VERSION = 3
#: What every version has.
TABLES = {"conversation", "message"}

#: The tables of version 2; what later ones added is in MIGRATIONS.
SCHEMA = """
create table conversation (
    number integer primary key,
    id text not null unique,
    title text not null,
    changed text not null,
    deleted text,                   -- when; such a conversation is gone for good at the next start
    preferences text not null,      -- JSON
    leaf integer                    -- the last message of the branch that is shown
);
create table message (
    id integer primary key autoincrement,  -- never given twice: a reply to what was deleted must not hit another
    conversation text not null references conversation (id) on delete cascade,
    parent integer,                 -- a cascade along it would end at SQLite's 1,000 levels
    role text not null,
    content text not null,
    ids text,                       -- JSON: a reply's tokens as they were generated
    model text,                     -- which model they belong to
    chat_format text,
    sources text not null,          -- JSON: [{"name", "page", "score", "text"}]
    state text not null,            -- of a reply: writing, done, stopped, failed, nothing_found or interrupted
    failure text not null,
    reason text,                    -- why generation ended: stop, length, window or loop
    ledger text,                    -- JSON: what its window was spent on, as Ledger.as_json gives it
    evidence text                   -- JSON: what its sentences draw on, as Evidence.as_json gives it
);
create index message_of_conversation on message (conversation, id);

-- Words in pairs and pieces, as words.indexed makes them; the triggers keep them true on every way.
create virtual table message_words using fts5 (words, tokenize = 'unicode61 remove_diacritics 2');
create trigger message_added after insert on message begin
    insert into message_words (rowid, words) values (new.id, indexed(new.content));
end;
create trigger message_changed after update of content on message when old.content <> new.content begin
    update message_words set words = indexed(new.content) where rowid = new.id;
end;
create trigger message_removed after delete on message begin
    delete from message_words where rowid = old.id;
end;
create virtual table title_words using fts5 (words, tokenize = 'unicode61 remove_diacritics 2');
create trigger conversation_added after insert on conversation begin
    insert into title_words (rowid, words) values (new.number, indexed(new.title));
end;
create trigger conversation_changed after update of title on conversation when old.title <> new.title begin
    update title_words set words = indexed(new.title) where rowid = new.number;
end;
create trigger conversation_removed after delete on conversation begin
    delete from title_words where rowid = old.number;
end;
"""

#: From each former version to the present one. Version 1 kept a conversation's messages one after the other.
MIGRATIONS: Mapping[int, str] = {
    1: f"""
alter table conversation rename to former_conversation;
alter table message rename to former_message;
drop index message_of_conversation;
{SCHEMA}
insert into conversation (id, title, changed, preferences, leaf)
    select id, title, changed, '{{}}', (select max(id) from former_message where conversation = former_conversation.id)
    from former_conversation order by rowid;
insert into message
    select id, conversation, lag(id) over (partition by conversation order by id), role, content, ids, model, null,
           sources, 'done', '', null, null, null
    from former_message order by id;
drop table former_message;
drop table former_conversation;
""",
    2: "alter table message add column evidence text;",
}


def prepare(connection: sqlite3.Connection) -> int:
    """Makes the tables, or brings them to the present version, and settles what an earlier run left open.

    Returns how many conversations, deleted since the last start, have gone for good.
    Raises sqlite3.Error for a file that is not ours, newer, or damaged, which is then left as it was.
    """
    (version,) = connection.execute("pragma user_version").fetchone()
    tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    if version > VERSION:
        raise sqlite3.DatabaseError(f"it was written by a newer Quatrain, version {version}")
    if tables and not (version and TABLES <= tables):
        raise sqlite3.DatabaseError("it belongs to another program")
    (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError("it is damaged")
    connection.create_function("indexed", 1, indexed, deterministic=True)
    connection.execute("pragma journal_mode = wal")
    if version < VERSION:
        change = MIGRATIONS[version] if tables else SCHEMA
        connection.executescript(f"begin; {change} pragma user_version = {VERSION}; commit;")
    connection.execute("pragma foreign_keys = on")  # only now: tables that others refer to were being replaced
    with connection:
        gone = connection.execute("delete from conversation where deleted is not null").rowcount
        connection.execute("update message set state = 'interrupted' where state = 'writing'")
    return gone
