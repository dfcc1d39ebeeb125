"""Small edits of users' files: comments, order and white space stay; writes are atomic."""

from __future__ import annotations

import json
import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import editing
from gateway.cli.editing import Document
from gateway.cli.output import CommandError
from gateway.config.text import plain_json

ENTRY = {"command": "x", "args": ["-a"]}
ADDED = """{
  // mine
  "a": 1, // one
  "mcpServers": {
    "b": {"command": "y"}, // last
    "new": {
      "command": "x",
      "args": [
        "-a"
      ]
    }
  }
}
"""


def document(tmp_path, text, name="c.json"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return Document(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '{\n  // mine\n  "a": 1, // one\n  "mcpServers": {\n    "b": {"command": "y"} // last\n  }\n}\n',
            None,
        ),
        ("", '{\n  "mcpServers": {\n    "new": {\n      "command": "x"\n    }\n  }\n}\n'),
        ("{}", '{\n  "mcpServers": {\n    "new": {\n      "command": "x"\n    }\n  }\n}'),
        ('{"a": [1, 2,],}', '{"a": [1, 2,], "mcpServers": {"new": {"command": "x"}},}'),
        ('{"mcpServers": {"b": {}}}', '{"mcpServers": {"b": {}, "new": {"command": "x"}}}'),
        (
            '{"mcpServers": {"new": 5 /* five */, "b": {}}}',
            '{"mcpServers": {"new": {\n  "command": "x"\n} /* five */, "b": {}}}',
        ),
        (
            '{\n\t"mcpServers": {\n\t\t"b": {},\n\t}\n}',
            '{\n\t"mcpServers": {\n\t\t"b": {},\n\t\t"new": {\n\t\t  "command": "x"\n\t\t},\n\t}\n}',
        ),
        ('{"mcpServers": { /* none */ }}', '{"mcpServers": { /* none */\n  "new": {\n    "command": "x"\n  }\n}}'),
    ],
)  # fmt: skip
def test_an_entry_is_added_and_all_else_stays(tmp_path, before, after):
    entry = ENTRY if after is None else {"command": "x"}
    assert document(tmp_path, before).edit(("mcpServers", "new"), entry) == (after or ADDED)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ADDED, '{\n  // mine\n  "a": 1, // one\n  "mcpServers": {\n    "b": {"command": "y"} // last\n  }\n}\n'),
        ('{"mcpServers": {"new": {}}}', '{"mcpServers": {}}'),
        ('{"mcpServers": {"new": {}, "b": 1}}', '{"mcpServers": { "b": 1}}'),
        ('{"mcpServers": {"b": 1, "new": {}}}', '{"mcpServers": {"b": 1 }}'),
        ('{\n "mcpServers": {\n  "b": 1,\n  "new": {},\n }}', '{\n "mcpServers": {\n  "b": 1,\n }}'),
        ('{"other": {}}', '{"other": {}}'),
    ],
)
def test_an_entry_is_removed_and_all_else_stays(tmp_path, before, after):
    assert document(tmp_path, before).edit(("mcpServers", "new"), None) == after


SPACE = st.sampled_from(["", " ", "\n", "\n  ", " // c\n", "/* , } */", "\t"])
KEYS = st.sampled_from(["a", "b", "new", 'q"', "é", "//"])


@st.composite
def texts(draw, depth=2):
    """A JSON text with comments and commas after the last entry."""
    kind = draw(st.sampled_from(["object", "object", "list", "value"])) if depth else "value"
    if kind == "value":
        return draw(st.sampled_from(["1", "null", '"x//y"', '"}"', "[]", "{}"]))
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    parts = [draw(texts(depth - 1)) for _ in keys]  # pyright: ignore
    if kind == "object":
        parts = [
            json.dumps(key) + draw(SPACE) + ":" + draw(SPACE) + part for key, part in zip(keys, parts, strict=True)
        ]
    body = ",".join(draw(SPACE) + part + draw(SPACE) for part in parts)
    comma = "," + draw(SPACE) if parts and draw(st.booleans()) else ""
    return ("{" if kind == "object" else "[") + body + comma + draw(SPACE) + ("}" if kind == "object" else "]")


@given(texts(), st.lists(KEYS, min_size=1, max_size=3), st.sampled_from([None, ENTRY, 1]))
def test_any_text_is_edited_correctly_or_refused(text, keys, value):
    try:
        edited = editing.edit_json(text, keys, value)
        wanted = editing.changed(json.loads(plain_json(text)), keys, value)
    except (ValueError, LookupError, TypeError, AttributeError):
        return
    assert json.loads(plain_json(edited)) == wanted


TOML = """# mine
[mcpServers.b]
command = "y" # why

[mcpServers."old one"]
command = "z"
[mcpServers."old one".env]
A = "1"

[gateway]
name = "n"
"""


def test_toml_gets_a_table_at_its_end(tmp_path):
    entry = {"command": "x", "args": ["a\n", 'é"'], "env": {"K": "v"}, "disabled": True}
    text = document(tmp_path, TOML, "c.toml").edit(("mcpServers", "new.one"), entry)
    assert text.startswith(TOML)
    assert tomllib.loads(text)["mcpServers"]["new.one"] == entry


def test_toml_loses_only_the_tables_of_an_entry(tmp_path):
    text = document(tmp_path, TOML, "c.toml").edit(("mcpServers", "old one"), None)
    assert text == '# mine\n[mcpServers.b]\ncommand = "y" # why\n\n[gateway]\nname = "n"\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", "mcpServers = {b = {command = 'y'}}\n"),
        ("c.toml", "[mcpServers]\nnew.command = 'y'\n"),
        ("c.json", '{"mcpServers": {}, "mcpServers": {}}'),
        ("c.json", '{"mcpServers": []}'),
    ],
)
def test_files_without_a_place_for_entries_are_refused(tmp_path, name, text):
    with pytest.raises(CommandError, match="cannot edit"):
        document(tmp_path, text, name).edit(("mcpServers", "new"), ENTRY)


@pytest.mark.parametrize("text", ["[]", "{", "\xff"])
def test_non_object_files_are_not_touched(tmp_path, text):
    with pytest.raises(CommandError, match="not changed"):
        document(tmp_path, text)


def test_a_file_that_changes_meanwhile_is_not_replaced(tmp_path):
    read = document(tmp_path, "{}")
    read.edit(("mine",), 1)
    read.path.write_text('{"other": 1}', encoding="utf-8")
    with pytest.raises(CommandError, match="changed meanwhile"):
        read.save(backup=True)
    assert read.path.read_text(encoding="utf-8") == '{"other": 1}'
    new = Document(tmp_path / "new.json")
    new.path.write_text("{}", encoding="utf-8")
    with pytest.raises(CommandError, match="changed meanwhile"):
        new.save()


def test_a_write_is_whole_or_none(tmp_path, monkeypatch):
    read = document(tmp_path, "{}")
    read.edit(("mine",), 1)

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CommandError, match="No space left"):
        read.save()
    assert read.path.read_text(encoding="utf-8") == "{}"
    assert os.listdir(tmp_path) == ["c.json"]


def test_links_and_modes_stay_with_a_backup(tmp_path):
    target = tmp_path / "real.json"
    target.write_text("{}", encoding="utf-8")
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    linked = Document(link)
    linked.edit(("mine",), 1)
    linked.save(backup=True)
    assert link.is_symlink()
    assert json.loads(target.read_text(encoding="utf-8")) == {"mine": 1}
    assert target.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "real.json.bak").read_text(encoding="utf-8") == "{}"
