# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A block in a configuration: where it is, what becomes of the file around it."""

from __future__ import annotations

from typing import Optional, Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model import config_file as model
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError

BODY = ["Host bastion", "    Port 2222", "Match all"]
BLOCK = (
    b"# BEGIN bastion.mux team\nHost bastion\n    Port 2222\nMatch all\n# END bastion.mux team\n"
)


def present(content: Optional[bytes], name: str = "team", new: Sequence[str] = ()) -> bytes:
    after = model.edit_present(content, name, BODY, set(new)).after
    assert after is not None
    return after


def absent(content: Optional[bytes], name: str = "team") -> Optional[bytes]:
    return model.edit_absent(content, name).after


@pytest.mark.parametrize("name", ["", "a b", "a\n", ".a", "-", "ä", "a" * 65, "a)"])
def test_names_that_no_marker_could_carry_are_refused(name: str) -> None:
    with pytest.raises(MuxError, match="name"):
        model.check_name(name)


OTHER = BLOCK.replace(b" team", b" other")

# What people have in their files. The guide's page "what is safe" shows this table.
HOSTILE = {
    "nothing": b"",
    "no newline at the end": b"Host a\n  Port 1",
    "CRLF": b"Host a\r\n\tPort 1\r\n",
    "tabs, equals signs and quotes": b'Host\ta\n\tPort=1\n\tUser = "x y"\n',
    "settings before the first Host": b"Compression yes\nHost a\n  Port 1\n",
    "Latin-1": b"# M\xfcller\nHost a\n",
    "a byte order mark": b"\xef\xbb\xbfHost a\n",
    "NUL": b"# \0\nHost a\n",
    "carriage returns alone": b"Host a\rPort 1\r",
    "Include and Match": b'Include x\nInclude y\nMatch exec "true"\n  SendEnv A\n  SendEnv B\n',
    "blank lines": b"\n\n\n",
    "blocks of other names": OTHER + b"Host a\n" + OTHER.replace(b"other", b"more"),
    "half a block of another name": b"# BEGIN bastion.mux other\nHost a\n",
    "markers of Ansible's own": b"# BEGIN ANSIBLE MANAGED BLOCK\n# END ANSIBLE MANAGED BLOCK\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_nothing_outside_of_the_block_changes(content: bytes) -> None:
    once = present(content)
    assert once.endswith(content)
    assert once[: -len(content) or None].replace(b"\r", b"") == BLOCK
    assert present(once) == once
    assert absent(once) == content
    assert absent(content) == content


def test_the_block_has_the_line_ends_of_the_file() -> None:
    content = b"Host a\r\n"
    assert present(content) == BLOCK.replace(b"\n", b"\r\n") + content
    # An editor may turn the whole file, and ours with it.
    assert present(BLOCK.replace(b"\n", b"\r\n") + content) == present(content)
    assert present(content.replace(b"\r", b"")) == BLOCK + b"Host a\n"


@pytest.mark.parametrize(
    ("above", "below"),
    [(b"User x\n", b"Host y"), (b"", b"User x"), (b"\n", b""), (OTHER, OTHER + b"Port 1\n")],
)
def test_a_block_is_renewed_where_it_is(above: bytes, below: bytes) -> None:
    old = BLOCK.replace(b"2222", b"1\n    User old")
    edit = model.edit_present(above + old + below, "team", BODY, set())
    assert edit.after == above + BLOCK + below
    assert (edit.above, edit.below) == (above, below)
    assert edit.line == above.count(b"\n") + 1
    lines = [line for part in edit.around("f") for line in part]
    numbered = model.lines_of("f", above + old + below)
    assert set(lines) <= set(numbered)
    assert b"\n".join(line.text for line in lines) == (above + below).rstrip(b"\n")


def test_a_marker_that_lost_its_newline_is_still_one() -> None:
    assert absent(b"Host a\n" + BLOCK[:-1]) == b"Host a\n"
    assert present(BLOCK[:-1]) == BLOCK


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"Host a\n# BEGIN bastion.mux team\nHost b\n", 2, "without its END"),
        (b"Host a\n\n# END bastion.mux team\n", 3, "without its BEGIN"),
        (BLOCK + BLOCK, 6, "second BEGIN"),
        (b"# BEGIN bastion.mux team\n" + BLOCK, 2, "second BEGIN"),
        (BLOCK + b"# END bastion.mux team\n", 6, "without its BEGIN"),
        (b"# BEGIN bastion.mux team\n" + OTHER + b"# END bastion.mux team\n", 2, "block other"),
        (b"#BEGIN bastion.mux team\nHost b\n# END bastion.mux team\n", 1, "damaged"),
        (b"# BEGIN bastion.mux team x\n# END bastion.mux team\n", 1, "damaged"),
        (b"  # BEGIN bastion.mux team\n# END bastion.mux team\n", 1, "damaged"),
        (b"# BEGIN bastion.mux\nHost b\n", 1, "damaged"),
        (b"# BEGIN bastion.mux team (new: fi\nHost b\n", 1, "damaged"),
    ],
)
def test_half_a_block_is_refused_by_its_line(content: bytes, line: int, what: str) -> None:
    for change in (present, absent):
        with pytest.raises(MuxError, match=r"^line %d: .*%s" % (line, what)) as caught:
            change(content)
        assert caught.value.reason == "invalid"


def test_what_was_made_is_noted_and_goes_with_the_last_block() -> None:
    first = present(None, "one", [model.DIRECTORY, model.CONTROL_DIR])
    assert first.startswith(b"# BEGIN bastion.mux one (new: control_dir, directory, file)\n")
    assert present(first, "one") == first
    both = present(first, "two")
    assert both.startswith(b"# BEGIN bastion.mux two (new: directory, file)\n")
    for one, two in (("one", "two"), ("two", "one")):
        left = model.edit_absent(both, one)
        assert left.after
        assert model.DIRECTORY not in left.gone
        last = model.edit_absent(left.after, two)
        assert last.after is None
        assert model.DIRECTORY in last.gone
    # What somebody wrote there since then stays.
    own = model.edit_absent(first + b"Host x\n", "one")
    assert own.after == b"Host x\n"
    assert own.gone == {model.CONTROL_DIR}
    # And a file that was empty before is empty after.
    assert absent(present(b"")) == b""


def test_no_file_and_nothing_to_remove_is_no_change() -> None:
    assert not model.edit_absent(None, "team").actions
    assert not model.edit_absent(b"", "team").actions


ANYTHING = st.one_of(
    st.binary(),
    st.lists(
        st.sampled_from(
            [b"Host a\n", b"\tPort=1\r\n", b"#", b"\n", b"\r", b"\xff\n", b"Match all", OTHER]
        )
    ).map(b"".join),
)


def is_clean(content: bytes) -> bool:
    """Whether no marker in it is damaged or of the block that the tests write."""
    try:
        return model.find(content, "team") is None
    except MuxError:
        return False


@given(above=ANYTHING, below=ANYTHING, crlf=st.booleans())
@example(above=b"", below=b"\r\n", crlf=True)
def test_any_bytes_before_and_after(above: bytes, below: bytes, crlf: bool) -> None:
    above += b"" if above.endswith(b"\n") or not above else b"\n"
    assume(is_clean(above + below) and is_clean(above) and is_clean(below))
    block = BLOCK.replace(b"\n", b"\r\n") if crlf else BLOCK
    for content, left in ((above, above), (above + block + below, above + below)):
        once = present(content)
        found = model.find(once, "team")
        assert found is not None
        assert once[: found.start] + once[found.end :] == left
        assert present(once) == once
        assert absent(once) == left
        assert absent(left) == left


@given(st.one_of(st.none(), ANYTHING))
def test_removed_is_restored(content: Optional[bytes]) -> None:
    assume(is_clean(content or b""))
    assert absent(present(content)) == content
    two = present(present(content, "one"), "two")
    assert absent(absent(two, "one"), "two") == content
    assert absent(absent(two, "two"), "one") == content
