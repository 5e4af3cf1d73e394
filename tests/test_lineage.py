"""The tree of a version: every ancestor once, sources with licences, and nothing that loops or breaks the terminal."""

import sys

import pytest

from prefdata import cli, lineage, manifests, versions
from prefdata.storage import Storage
from tests.published import publish


def child(root, *parents, **fields):
    return publish(root, build="made", parents=[versions.parent_entry(each, str(root)) for each in parents], **fields)


def names(lines):
    return [line.replace("├── ", "").replace("└── ", "").replace("│", "").split()[0] for line in lines]


def edit(version, **fields):
    manifest = manifests.sealed({**version.manifest, **fields})
    Storage(version.url).write("manifest.json", manifests.as_bytes(manifest))
    return versions.find(version.url)


def test_a_chain_ends_in_its_sources_with_their_licences(tmp_path):
    source = {"name": "chats", "rows": 3, "format": "hh"}
    one = publish(tmp_path, sources=[{**source, "license": "MIT"}, {**source, "name": "other"}])
    three = child(tmp_path, child(tmp_path, one, sources=one.manifest["sources"], round=1), sources=[])
    versions.tag("best", "v2", str(tmp_path))
    assert list(lineage.ancestors(three)) == [
        "v3  pairs  made  train 1",
        "└── v2  pairs  made  round 1  train 1  tags: best",
        "    └── v1  pairs  ingest  train 1",
        "        ├── source chats  hh  3 rows  licence: MIT",
        "        └── source other  hh  3 rows  licence not stated",
    ]
    assert names(lineage.descendants(one)) == ["v1", "v2", "v3"]
    assert names(lineage.descendants(three)) == ["v3"]


def test_a_shared_ancestor_is_unfolded_once(tmp_path):
    one = publish(tmp_path)
    two, three = child(tmp_path, one), child(tmp_path, one)
    four = child(tmp_path, two, three)
    lines = list(lineage.ancestors(four))
    assert names(lines) == ["v4", "v2", "v1", "source", "v3", "v1"]
    assert [line.endswith("(unfolded above)") for line in lines] == [False] * 5 + [True]
    assert names(lineage.descendants(one)) == ["v1", "v2", "v4", "v3", "v4"]


def test_a_ladder_of_shared_ancestors_stays_short_and_a_long_chain_draws(tmp_path):
    last = [publish(tmp_path)]
    for _ in range(12):
        last = [child(tmp_path, *last), child(tmp_path, *last)]
    assert len(list(lineage.ancestors(last[0]))) < 60  # 4096 paths lead to the first

    chain = lineage.Node("x", last[0])
    made = iter(range(3000))

    class Other:
        def __init__(self, number):
            self.url = str(number)

    deep = lineage._drawn(chain, lambda _: [lineage.Node("y", Other(n)) for n in [next(made, None)] if n is not None])
    assert sum(1 for _ in deep) == 3001


def test_a_lost_parent_costs_one_look_at_the_others_and_descendants_one_at_all(tmp_path, monkeypatch):
    one = publish(tmp_path)
    last = [child(tmp_path, one) for _ in range(4)][-1]
    every, looks = versions.every, []
    monkeypatch.setattr(versions, "every", lambda *given: looks.append(given) or every(*given))
    assert len(list(lineage.descendants(one, str(tmp_path)))) == 5
    assert len(looks) == 1
    looks.clear()
    Storage(one.url).remove("manifest.json")
    assert "cannot be opened" in list(lineage.ancestors(last))[1]
    assert len(looks) == 1


def test_descendants_take_time_in_proportion(tmp_path, monkeypatch):
    one = publish(tmp_path)
    known = [one, *[child(tmp_path, one) for _ in range(3)]]
    asked = []
    parent_urls = lineage._parent_urls
    monkeypatch.setattr(lineage, "_parent_urls", lambda version: asked.append(version) or parent_urls(version))
    assert names(lineage.descendants(one, str(tmp_path))) == ["v1", "v2", "v3", "v4"]
    assert len(asked) == len(known)


def test_a_manifest_that_names_itself_does_not_loop(tmp_path):
    one = publish(tmp_path)
    two = child(tmp_path, one)
    one = edit(one, parents=[{"version": "v2", "logical_hash": two.logical_hash}])
    assert names(lineage.ancestors(one))[:3] == ["v1", "v2", "v1"]
    assert names(lineage.descendants(one)) == ["v1", "v2", "v1"]


def test_a_parent_that_is_gone_or_another_is_said(tmp_path):
    one = publish(tmp_path)
    two = child(tmp_path, one)
    edit(one, logical_hash="0" * 64)
    assert "logical hash differs" in list(lineage.ancestors(two))[1]
    Storage(one.url).remove("manifest.json")
    assert "v1  cannot be opened: there is no version" in list(lineage.ancestors(two))[1]
    Storage(one.url).write("manifest.json", b"{")
    assert "v1  cannot be opened" in list(lineage.ancestors(two))[1]


def test_a_parent_below_another_root_is_found_both_ways(tmp_path):
    one = publish(tmp_path / "a")
    namesake = publish(tmp_path / "b")
    two = child(tmp_path / "b", one)
    assert names(lineage.ancestors(two)) == ["v2", "v1", "source"]
    assert names(lineage.descendants(one, str(tmp_path / "b"))) == ["v1", "v2"]
    assert names(lineage.descendants(namesake)) == ["v1"]  # called v1 as well, and not the parent


def test_the_command_draws_what_data_can_not_break(tmp_path, capsys, monkeypatch):
    one = publish(tmp_path, sources=[{"name": "bad\x1b[2J\nname", "license": "\u202eMIT"}])
    child(tmp_path, one, sources=one.manifest["sources"])
    root = ["--root", str(tmp_path)]
    assert cli.main(["lineage", "v2", *root]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert "└── v1" in out
    assert not {"\x1b", "\u202e"} & set(out)
    assert cli.main(["lineage", "v1", "--down", *root]) == 0
    assert "made from it:\nv1" in capsys.readouterr().out
    assert cli.main(["lineage", "v9", *root]) == 2
    monkeypatch.setattr(type(sys.stdout), "encoding", "ascii", raising=False)
    assert cli._printable("└── ü") == "`-- \\xfc"


@pytest.mark.parametrize("source", [{}, {"name": None, "rows": 0}])
def test_a_source_that_says_little_is_still_drawn(source):
    assert lineage._source(source).startswith("source without a name")
    assert lineage._source(source).endswith("licence not stated")
