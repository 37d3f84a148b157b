# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook status shows: lines for a terminal, and a page that no name breaks out of."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.engine import spec
from ansible_collections.bastion.mux.plugins.plugin_utils import status
from tests.support.page import Elements
from tests.support.playbook import CHECKOUT

Dict = dict[str, Any]


def forward(kind: str = "local", **more: Any) -> Dict:
    """One element of `forwards`, as ssh_master_info returns it."""
    return {
        "type": kind,
        "listen_host": "localhost",
        "listen_port": 5432,
        "listen_socket": None,
        "connect_host": None if kind == "dynamic" else "db",
        "connect_port": None if kind == "dynamic" else 5432,
        "connect_socket": None,
        "allocated_port": None,
        "state": "present",
        "evidence": "listener",
        **more,
    }


def unix(listen: str | None = None, connect: str | None = None, **more: Any) -> Dict:
    """A forwarding with a unix socket at one end or at both."""
    ends: Dict = {}
    for side, path in (("listen", listen), ("connect", connect)):
        if path is not None:
            ends |= {f"{side}_host": None, f"{side}_port": None, f"{side}_socket": path}
    return forward(**ends, **more)


def master(name: str | None = "bastion", **more: Any) -> Dict:
    """One element of `masters`, as ssh_master_info returns it."""
    return {
        "control_path": f"/m/{name}",
        "pid": 4711,
        "alive": True,
        "managed": True,
        "host": name,
        "port": 22,
        "user": "me",
        "jump": [],
        "persist": "yes",
        "started": "2026-11-24T06:56:05Z",
        "openssh": "OpenSSH_9.2p1",
        "forwards": [],
        "reason": None,
        "stale": False,
        **more,
    }


def gone(name: str, **more: Any) -> Dict:
    """What no process answers for: nothing is known of it but its socket."""
    unknown = dict.fromkeys(("pid", "host", "port", "user", "persist", "started", "openssh"))
    dead = {"alive": False, "managed": False, "reason": "not_running"}
    return {**master(name), **unknown, **dead, **more}


REACHED: Dict = {"reachable": True, "msg": None}
REFUSED: Dict = {"reachable": False, "msg": "db port 5432: connect failed: Connection refused"}
CUT_OFF: Dict = {"reachable": False, "msg": "no answer within 10 s"}
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e\n"


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("web-1", "web-1"),
        ("größe 東京", "größe 東京"),
        ("a\nb\tc\x1b[31m", "a\ufffdb\ufffdc\ufffd[31m"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        (None, "None"),
        (22, "22"),
    ],
)
def test_clean_keeps_what_is_visible(text: object, cleaned: str) -> None:
    assert status.clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "columns", "clipped"),
    [
        ("short", 5, "short"),
        ("abcdefghij", 7, "abcd…ij"),
        ("東京東京東京", 7, "東京…京"),
        ("e\u0301" * 5, 5, "e\u0301" * 5),
    ],
)
def test_clip_keeps_both_ends(text: str, columns: int, clipped: str) -> None:
    assert status.clip(text, columns) == clipped


@given(text=st.text(), columns=st.integers(1, 40))
def test_clip_fits(text: str, columns: int) -> None:
    clipped = status.clip(text, columns)
    assert status.width(clipped) <= columns
    assert clipped == text or "…" in clipped


@pytest.mark.parametrize(
    ("given_forward", "near", "far"),
    [
        (forward(), "localhost:5432", "db:5432"),
        (forward(listen_host="::1"), "[::1]:5432", "db:5432"),
        (forward(listen_host="*"), "*:5432", "db:5432"),
        (forward("dynamic", listen_port=1080), "localhost:1080", status.ANYWHERE),
        (unix("/run/a.sock", "/run/b.sock"), "/run/a.sock", "/run/b.sock"),
        (unix(connect="/run/b.sock"), "localhost:5432", "/run/b.sock"),
        (forward("remote", listen_port=8080), "db:5432", "localhost:8080"),
        (
            forward("remote", connect_host=None, connect_port=None),
            status.ANYWHERE,
            "localhost:5432",
        ),
    ],
)
def test_a_forwarding_has_a_near_and_a_far_end(given_forward: Dict, near: str, far: str) -> None:
    described = status.describe_forward(given_forward)
    assert (described["near"], described["far"]) == (near, far)


@pytest.mark.parametrize(
    ("probe", "health", "words", "detail"),
    [
        (None, "unknown", "open", ""),
        (REACHED, "good", "reachable", ""),
        (REFUSED, "bad", "unreachable", REFUSED["msg"]),
    ],
)
def test_the_health_of_a_forwarding(
    probe: Dict | None, health: str, words: str, detail: str
) -> None:
    described = status.describe_forward(forward() if probe is None else forward(probe=probe))
    assert (described["health"], described["words"], described["detail"]) == (health, words, detail)


MASTERS: dict[str, tuple[Dict, str, str, str]] = {
    "alive": (master(), "good", "alive", ""),
    "tried": (master(probe=REACHED), "good", "alive", ""),
    "unmanaged": (master(managed=False, openssh=None), "good", "alive", ""),
    "network died": (
        master(reason="unreachable", probe=CUT_OFF),
        "bad",
        "unreachable",
        CUT_OFF["msg"],
    ),
    "dead": (gone("x"), "bad", "not running", ""),
    "stale": (gone("x", stale=True), "bad", "stale socket", ""),
    "wedged": (master(alive=False, reason="wedged"), "bad", "wedged", ""),
    "no master": (
        gone("x", reason="invalid", msg="is no master"),
        "bad",
        "invalid",
        "is no master",
    ),
}


@pytest.mark.parametrize("case", MASTERS)
def test_the_health_of_a_master(case: str) -> None:
    given_master, health, words, detail = MASTERS[case]
    described = status.describe_master(given_master)
    assert (described["health"], described["words"], described["detail"]) == (health, words, detail)


@pytest.mark.parametrize(
    ("given_master", "name", "login"),
    [
        (master(), "bastion", "me@bastion:22"),
        (master("::1"), "::1", "me@[::1]:22"),
        (master(user=None, port=None), "bastion", "bastion"),
        (gone("0d8a53"), "0d8a53", ""),
    ],
)
def test_the_name_of_a_master(given_master: Dict, name: str, login: str) -> None:
    described = status.describe_master(given_master)
    assert (described["name"], described["login"]) == (name, login)


def test_what_a_dead_master_forwards_is_cut_off() -> None:
    dead = master(reason="unreachable", forwards=[forward(), forward("remote")])
    assert [one["words"] for one in status.describe_master(dead)["forwards"]] == ["cut off"] * 2


def test_forwardings_are_sorted_by_number() -> None:
    ports = [10000, 900, 8080]
    described = status.describe_master(
        master(forwards=[forward(listen_port=port) for port in ports])
    )
    assert [one["listens"] for one in described["forwards"]] == [
        f"localhost:{port}" for port in sorted(ports)
    ]


# -- lines -----------------------------------------------------------------------------------------


def test_lines_of_nothing() -> None:
    assert status.lines([]) == ["No masters."]


def test_lines() -> None:
    masters = [
        master(
            "inner",
            jump=["me@a", "b:2222"],
            forwards=[forward(probe=REFUSED), forward("dynamic", listen_port=1080)],
        ),
        master(managed=False),
        gone("0d8a53", stale=True),
    ]
    assert status.lines(masters) == [
        "0d8a53     stale socket  /m/0d8a53",
        "bastion    alive         me@bastion:22  /m/bastion  process 4711  of another program",
        "inner      alive         me@inner:22  through me@a, b:2222  /m/inner  process 4711",
        "  dynamic  open          localhost:1080 -> any host (SOCKS)",
        f"  local    unreachable   localhost:5432 -> db:5432  ({REFUSED['msg']})",
    ]


def test_a_long_name_moves_its_own_line_alone() -> None:
    short, long = status.lines([master("a"), master("x" * 60)])
    assert short.index("alive") == 34
    assert long.index("alive") == 62


def test_lines_are_lines_whatever_the_names_are() -> None:
    lines = status.lines([master(HOSTILE, user=HOSTILE, jump=[HOSTILE], msg=HOSTILE)])
    assert len(lines) == 1
    assert lines[0].isprintable()


def test_a_master_that_two_hosts_of_the_inventory_share_is_shown_once() -> None:
    assert len(status.lines([master(), master()])) == 1


# -- the picture -----------------------------------------------------------------------------------


def many(count: int) -> list[Dict]:
    return [forward(listen_port=port) for port in range(10000, 10000 + count)]


WORLDS: dict[str, list[Dict]] = {
    "one": [master(forwards=many(2))],
    "no forwardings": [master()],
    "every condition": [case[0] | {"control_path": name} for name, case in MASTERS.items()],
    "thirty masters": [master(f"bastion-{n:02}", forwards=many(n)) for n in range(30)],
    "hundreds of forwardings": [master(forwards=many(500)), master("other", forwards=many(1))],
    "a chain of jump hosts": [
        master("inner", jump=["me@a", "b:2222", "c"], forwards=many(1)),
        master("a"),
        master("b", jump=["me@a"]),
    ],
    "two paths to the same host": [
        master("db", control_path="/m/1", jump=["left"], forwards=many(1)),
        master("db", control_path="/m/2", jump=["right"], forwards=many(1)),
        master("db2", jump=["right"]),
    ],
    "long names": [
        master("b" * 300, user="u" * 300, jump=["j" * 300], forwards=[unix("/l" * 50, "/f" * 50)])
    ],
    "hostile": [
        master(
            HOSTILE,
            control_path=f"/m/{HOSTILE}",
            user=HOSTILE,
            jump=[HOSTILE],
            reason=HOSTILE,
            persist=HOSTILE,
            openssh=HOSTILE,
            probe={"reachable": False, "msg": HOSTILE},
            forwards=[unix(HOSTILE, HOSTILE), forward(HOSTILE, connect_host=HOSTILE)],
        )
    ],
}
worlds = pytest.mark.parametrize("masters", WORLDS.values(), ids=WORLDS)


@worlds
def test_everything_is_drawn_once_and_where_it_belongs(masters: Sequence[Dict]) -> None:
    page = status.page(masters)
    forwards = [forward for one in page["masters"] for forward in one["forwards"]]
    assert page["counts"]["masters"] == len(masters)
    assert page["counts"]["forwards"] == len(forwards)
    assert sum(page["counts"][health] for health in ("good", "bad", "unknown")) == len(forwards)
    lanes = [
        lane["listens"]
        for sheet in page["sheets"]
        for box in sheet["masters"]
        for lane in box["lanes"]
    ]
    assert lanes == [forward["listens"] for forward in forwards]
    for sheet in page["sheets"]:
        boxes = [sheet["controller"], *sheet["hops"], *sheet["masters"]]
        assert all(0 <= box["x"] <= box["x"] + box["w"] <= sheet["width"] for box in boxes)
        assert all(0 <= box["y"] <= box["y"] + box["h"] <= sheet["height"] for box in boxes)
        for above, below in zip(sheet["masters"], sheet["masters"][1:], strict=False):
            assert above["y"] + above["h"] < below["y"]
        for box in sheet["masters"]:
            heights = [lane["y"] for lane in box["lanes"]]
            assert heights == sorted(set(heights))
            assert all(box["y"] < height < box["y"] + box["h"] for height in heights)


@worlds
def test_no_picture_is_higher_than_a_printed_page(masters: Sequence[Dict]) -> None:
    # What is 688 pixels wide on A4 with margins of 14 mm may be 1016 high.
    assert all(sheet["height"] < 1016 for sheet in status.page(masters)["sheets"])


def test_hundreds_of_forwardings_go_on_in_the_next_picture() -> None:
    sheets = status.page(WORLDS["hundreds of forwardings"])["sheets"]
    names = [box["name"]["text"] for sheet in sheets for box in sheet["masters"]]
    assert names[:2] == ["bastion (1/12)", "bastion (2/12)"]
    assert names[-1] == "other"
    assert sum(len(box["lanes"]) for sheet in sheets for box in sheet["masters"]) == 501


def test_a_jump_host_is_drawn_once_for_all_that_is_behind_it() -> None:
    (sheet,) = status.page(WORLDS["a chain of jump hosts"])["sheets"]
    assert [column["head"] for column in sheet["columns"]] == [
        "this controller",
        *["jump"] * 3,
        "bastion",
        "beyond",
    ]
    assert [hop["text"] for hop in sheet["hops"]] == ["me@a", "b:2222", "c"]
    _a, b, inner = sheet["masters"]
    first = sheet["hops"][0]
    assert (first["y"], first["y"] + first["h"]) == (b["y"], inner["y"] + inner["h"])


def test_two_paths_to_one_host_are_two_masters() -> None:
    (sheet,) = status.page(WORLDS["two paths to the same host"])["sheets"]
    assert [hop["text"] for hop in sheet["hops"]] == ["left", "right"]
    assert [box["name"]["text"] for box in sheet["masters"]] == ["db", "db", "db2"]


def test_what_is_clipped_is_told_in_full() -> None:
    (sheet,) = status.page(WORLDS["long names"])["sheets"]
    (box,) = sheet["masters"]
    for text, full in ((box["name"], "b" * 300), (box["lanes"][0]["near"], "/l" * 50)):
        assert status.width(text["text"]) < 40
        assert text["full"] == full


# -- the page --------------------------------------------------------------------------------------


def render(masters: Sequence[Dict], scope: str = "The masters of ~/.ansible/mux") -> str:
    # As Ansible's module template reads it.
    loader = jinja2.FileSystemLoader(CHECKOUT / "playbooks/templates")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("status.html.j2")
    return template.render(page=status.page(masters), status_scope=scope)


# What the template is made of: nothing that loads, runs or sends anything.
TAGS = set(
    "html head meta title style body h1 h2 h3 p ul li b small span section header dl div dt dd "
    "figure svg g text rect path circle table thead tbody tr th td a".split()
)


@worlds
def test_the_page_is_made_of_its_own_elements_alone(masters: Sequence[Dict]) -> None:
    page = render(masters, HOSTILE)
    found = Elements(page)
    assert {tag for tag, _attributes in found.elements} <= TAGS
    names = {name for _tag, attributes in found.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "style", "srcset", "action", "xlink:href"}
    links = [attributes["href"] for tag, attributes in found.elements if tag == "a"]
    targets = [attributes["id"] for _tag, attributes in found.elements if "id" in attributes]
    assert links == [f"#{target}" for target in targets]
    assert len(links) == len(masters)
    assert not re.search(r"url\(|@import|https?://", page)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(picture)


def test_a_hostile_name_is_text() -> None:
    page = render(WORLDS["hostile"])
    assert "<script" not in page
    assert "alert(1)" in Elements(page).text
    # The template's own line breaks aside, nothing invisible is left of it.
    assert page.replace("\n", "").replace("\N{NO-BREAK SPACE}", " ").isprintable()


def test_the_page_of_nothing_says_so() -> None:
    assert "There is no master here." in Elements(render([])).text


@pytest.mark.parametrize("case", MASTERS)
def test_the_page_tells_the_condition(case: str) -> None:
    given_master, _health, words, detail = MASTERS[case]
    text = Elements(render([given_master])).text
    assert words in text
    assert detail in text
    assert ("of another program" in text) == (case == "unmanaged")


# -- the playbook ----------------------------------------------------------------------------------


def test_the_playbook_knows_what_names_a_master() -> None:
    (play,) = yaml.safe_load((CHECKOUT / "playbooks/status.yml").read_text(encoding="utf-8"))
    assert play["vars"]["status_names"] == list(spec.MASTER)
