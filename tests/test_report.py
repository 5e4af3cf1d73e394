"""The report: what it says, what it makes of a version's numbers, and that data stays text in it."""

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefdata import beside, cli, report, stats, versions
from prefdata.errors import UserError
from prefdata.report import (
    alarms,
    ancestry,
    charts,
    of_version,
    pieces,
    plots,
    probe,
    rendering,
    rows,
    sample,
    shortcuts,
)
from prefdata.report.charts import Series
from prefdata.storage import Storage
from prefdata.verify import verify
from prefdata.versions import Version
from schemas.stats import TABLES
from tests.published import completion, pair, publish, rows_table
from tests.report_world import HOSTILE, World
from tests.tokenizers_small import STYLES, build


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def version(world: World) -> Version:
    """120 pairs and 3 regenerated ones held out."""
    rows = [world.pair(f"question {n}", f"answer {n} indeed", f"nothing {n}") for n in range(120)]
    made = [world.regenerated(f"question t{n}", "It was ", "a cat", "some dogs", f" in {n}.") for n in range(3)]
    return world.publish(rows, test=made, segments=True)


_APART = {"dt", "dd", "td", "th", "tr", "li", "p", "h3"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and the text in them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag in _APART:
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        self.inside.get(self._open, self.texts).append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def values(self, attribute: str) -> list[str | None]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


def page_of(version: Version) -> Page:
    return Page(of_version.page(version).html)


# -- what it says --------------------------------------------------------------------------------------------------


def test_a_page_says_what_the_version_is_and_in_which_order(version: Version) -> None:
    page = page_of(version)
    assert "123 preference pairs (120 train, 3 test), made by ingest on" in page.text
    told = [
        page.text.index(part) for part in ("Warnings", "Shortcut probe", "Where it came from", "What became", "How the")
    ]
    assert told == sorted(told)


def test_every_reason_of_the_ledger_is_told_with_its_number_and_meaning(version: Version) -> None:
    assert "124 rows went in: 123 kept (at least one row was made from each), 1 set aside." in page_of(version).text
    assert "chosen_empty 1 the chosen answer is empty" in page_of(version).text


def test_the_funnel_narrows_by_what_was_set_aside() -> None:
    stages = [
        {"stage": "read", "rows_in": 10, "kept": 8, "set_aside": {"b": 1, "a": 1}},
        {"stage": "gate", "rows_in": 8, "kept": 2, "set_aside": {"missing_field": 6}},
    ]
    first, last = of_version.funnel(stages)
    assert (first.share_in, first.share_kept, last.share_in, last.share_kept) == (1, 0.8, 0.8, 0.2)
    assert last.reasons == [("missing_field", 6, "a column that the format needs is absent or null")]


def test_the_same_version_gives_the_same_page(version: Version) -> None:
    assert of_version.page(version).html == of_version.page(version).html


def test_shortcuts_are_warned_of_at_the_top_and_counted(version: Version) -> None:
    """Every chosen answer has a word of its own, and is longer."""
    page = of_version.page(version)
    assert "bag of words alone tells chosen from rejected" in Page(page.html).text
    assert page.alarms >= 2


def test_without_its_tokenizer_rows_are_shown_unshaded_and_the_page_says_why(tmp_path: Path) -> None:
    gone = World(tmp_path)
    version = gone.publish([gone.pair("q", "yes it is", "no")])
    Path(gone.model).rename(tmp_path / "elsewhere")
    page = page_of(version)
    assert "Tokens are not shown one by one: the tokenizer of" in page.text
    assert "yes it is" in page.text
    assert page.values("data-p") == []


def test_another_tokenizer_in_its_place_is_not_used(world: World) -> None:
    other = {**world.fields["tokenizer"], "digest": "0" * 64}
    version = world.publish([world.pair("q", "yes", "no")], tokenizer=other)
    decoder, why_not = pieces.decoder(version)
    assert decoder is None
    assert "holds another tokenizer now" in why_not


@pytest.mark.parametrize("kind", ["completions", "pairs"])
def test_a_version_without_reference_has_a_page_too(kind: str, tmp_path: Path) -> None:
    rows = [
        completion([1, 2], prompt=str(n)) if kind == "completions" else pair([1], [2], prompt=str(n)) for n in range(3)
    ]
    page = page_of(publish(tmp_path / "data", kind, train=rows, reference=False))
    assert "No reference log-probs" in page.text
    assert ("Shortcut probe" in page.text) == (kind == "pairs")


def test_completions_show_their_scores_and_lengths(world: World) -> None:
    made = [world.completion(f"q{n}", "word " * n, score=float(n)) for n in range(1, 9)]
    page = page_of(publish(world.root, "completions", train=made, **world.fields))
    titles = [label for label in page.values("aria-label") if label]
    assert [title.partition(",")[0] for title in titles if title.startswith("Histogram")] == [
        "Histogram of prompt length",
        "Histogram of answer length",
        "Histogram of score",
        "Histogram of reference log-prob",
    ]


# -- data stays text -----------------------------------------------------------------------------------------------


def hostile_version(world: World, kind: str, texts: dict[str, str]) -> Version:
    """A version in which every text from data is the given one."""
    fields = {"sources": [{"name": text, "license": text, "format": text} for text in list(texts.values())[:5]]}
    if kind == "completions":
        rows = [world.completion(text, text, source=text, method=text) for text in texts.values()]
        return publish(world.root, kind, train=rows, **{**world.fields, **fields})
    rows = [world.pair(text, f"{text} a", f"{text} b", source=text, method=text) for text in texts.values()]
    return world.publish(rows, **fields)


@pytest.mark.parametrize("kind", ["pairs", "completions"])
@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
def test_hostile_text_makes_no_element_and_no_attribute(
    kind: str, tokens: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The elements of a page are those it would have if the same rows held harmless text."""
    if not tokens:
        monkeypatch.setattr(pieces, "decoder", lambda version: (None, "switched off"))
    harmless = {name: f"harmless {name}" for name in HOSTILE}
    attacked, plain = (page_of(hostile_version(world, kind, texts)) for texts in (HOSTILE, harmless))
    shape = [_shape(page, tokens) for page in (attacked, plain)]
    assert shape[0] == shape[1]
    assert [tag for tag, _ in attacked.tags].count("script") == 1
    assert not [name for _, attrs in attacked.tags for name in attrs if name.startswith("on")]


def _shape(page: Page, tokens: bool) -> Counter[Any]:
    """Elements with their attributes' names; not those whose number depends on the text itself: pieces, plotted marks, badges."""
    counted = (
        {"i", "line", "circle", "text", "span", "q", "path"}
        if tokens
        else {"line", "circle", "text", "span", "q", "path"}
    )
    found = Counter((tag, *sorted(attrs)) for tag, attrs in page.tags if tag not in counted)
    known = {"i", "line", "circle", "text", "span", "q", "path", *(tag for tag, *_ in found)}
    assert {tag for tag, _ in page.tags} <= known
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_there_to_be_read(name: str, world: World) -> None:
    html = of_version.page(hostile_version(world, "pairs", {name: HOSTILE[name]})).html
    page = Page(html)
    assert not rendering._HIDDEN.search(html)
    expected = " ".join(rendering.visible(HOSTILE[name]).split())
    assert page.text.count(expected) >= 3  # prompt, chosen, rejected


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE["bidi"],
        HOSTILE["invisible"],
        HOSTILE["shapeless"],
        "a\u3164\u034fb",
        HOSTILE["controls"],
        "half \ud800 pair \udfff",
    ],
)
def test_what_hides_or_reorders_text_is_spelled_out(text: str) -> None:
    shown = rendering.visible(text)
    assert not set(shown) & set(
        "\xad\u180e\u3164\u115f\u1160\u034f\uffa0\U000e0100\U000e01ef\u202e\u2066\u2069\u200f\u061c\u200b\ufeff\u2060\U000e0041\x07\x1b\x7f\x00\r\ud800\udfff"
    )
    shown.encode("utf-8")
    assert re.sub(r"<U\+([0-9A-F]+)>", lambda found: chr(int(found[1], 16)), shown) == text


@pytest.mark.parametrize("name", ["emoji", "right to left", "combining", "entities"])
def test_what_is_only_text_is_left_as_it_is(name: str) -> None:
    assert rendering.visible(HOSTILE[name]) == HOSTILE[name]


def test_the_page_loads_nothing_and_only_its_own_style_and_script_may_run(version: Version) -> None:
    html = of_version.page(version).html
    page = Page(html)
    assert not page.values("src")
    assert all(href and href.startswith("#") for href in page.values("href"))
    assert "url(" not in page.inside["style"][0]
    assert "@import" not in page.inside["style"][0]
    policy = page.values("content")[0]
    assert policy is not None
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256("".join(page.inside[name]).encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert page.values("style") == []


# -- warnings ------------------------------------------------------------------------------------------------------


def checked(kind: str, rows_: list[dict[str, Any]], *, test: bool = True, reference: bool = True) -> alarms.Checked:
    found = stats.Stats(kind)
    found.add("train", rows_table(kind, rows_, reference=reference))
    tables = {name: table.to_pylist() for name, table in found.tables().items()}
    counts: Any = {"rows_in": 4, "kept": 4, "set_aside": 0, "stages": [], "rows": {"train": 4, "test": int(test)}}
    return alarms.check(tables, counts, referenced=reference)


def sound(**columns: Any) -> list[dict[str, Any]]:
    """Pairs with nothing wrong with them, changed by `columns`."""
    longer, shorter = list(range(10, 20)), list(range(30, 38))
    sides = [(longer, shorter), (shorter, longer), (longer[:9], [*shorter, 3]), (shorter[:7], longer[:7])]
    return enough(*(pair(*side) | columns for side in sides))


def enough(*rows_: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows again and again, each time under a prompt of its own, as often as makes a share worth telling."""
    again = -(-alarms.FEWEST_ROWS // len(rows_))
    return [row | {"prompt_id": f"prompt {n} {at}"} for at in range(again) for n, row in enumerate(rows_)]


def test_sound_rows_raise_no_alarm() -> None:
    found = checked("pairs", sound())
    assert found.alarms == ()
    assert len(found.sound) >= 12


LOW = [-12.0] * 7
FAULTS: dict[str, list[dict[str, Any]]] = {
    "Reference log-probs that are not finite": [pair([1], [2], logps=([float("nan")], [-1.0]))],
    "Reference log-probs above zero": [pair([1], [2], logps=([0.5], [-1.0]))],
    "Answers without a scored token": [pair([1], [2]) | {"chosen_tokens": 0}],
    "Identical pairs": [pair([1, 2], [1, 2])],
    "Scores that contradict the label": sound(margin=-1.0, chosen_score=0.0, rejected_score=1.0),
    "Ties in score": sound(margin=0.0, chosen_score=1.0, rejected_score=1.0),
    "The reference prefers the rejected side": enough(pair([1, 2], [3, 4], logps=([-2.0] * 2, [-1.9] * 2))),
    "One side is much less on-policy than the other": enough(pair([1, 2], [3, 4], logps=([-1.0] * 2, [-1.6] * 2))),
    "Tokens that the reference would hardly write": enough(pair([1], [2], logps=([-1.0], [-10.5]))),
    "Answers that the reference would hardly write": enough(pair([1], [2], logps=([-1.0], [-3.5]))),
    "Sums that saturate losses": [pair([1], [2], logps=([-10001.0], [-1.0]))],
    "The chosen side is usually the longer one": enough(pair([1, 2, 3], [4])),
    "The rejected side is usually the longer one": enough(pair([4], [1, 2, 3])),
    "Answers cut by length": sound(chosen_finish="length", rejected_finish="length"),
    "One side is cut more often": sound(rejected_finish="length"),
    "Near-duplicate pairs": enough(pair([*range(100)], [*range(99), 200])),
    "Chosen answers that are rejected elsewhere": [pair([1], [2]), pair([3], [1])],
    "Same text in different tokens": [pair([1], [2], text=("a", "a"))],
    "Rows that repeat a prompt and its good answer": [pair([1], [n]) for n in range(2, 42)],
}


@pytest.mark.parametrize("title", FAULTS)
def test_each_fault_raises_its_alarm(title: str) -> None:
    assert title in [alarm.title for alarm in checked("pairs", FAULTS[title]).alarms]


COUNTED = {rule.title for rule in alarms.RULES if rule.fewest == 1}


@pytest.mark.parametrize("title", FAULTS)
def test_few_rows_are_told_by_counts_and_not_by_shares(title: str) -> None:
    rows_ = FAULTS[title][: alarms.FEWEST_ROWS - 1]
    assert (title in [alarm.title for alarm in checked("pairs", rows_).alarms]) == (title in COUNTED)


def test_every_rule_reads_a_table_that_exists_and_has_a_test() -> None:
    assert {rule.table for rule in alarms.RULES} <= set(TABLES)
    assert {rule.title for rule in alarms.RULES} <= set(FAULTS)


def test_errors_come_before_warnings_and_notes() -> None:
    rows_ = enough(pair([1], [1], margin=0.0, chosen_score=0.0, rejected_score=0.0) | {"rejected_finish": "length"})
    levels = [alarm.level for alarm in checked("pairs", rows_, test=False).alarms]
    assert levels == sorted(levels, key=alarms.LEVELS.index)
    assert set(levels) == {"error", "warning", "note"}


def test_what_is_missing_is_a_note() -> None:
    found = checked("completions", [completion([1, 2])], test=False, reference=False)
    assert [alarm.title for alarm in found.alarms] == ["No reference log-probs", "No held-out rows"]
    assert found.serious == []


def test_labels_that_are_rare_or_told_by_length_raise_alarms() -> None:
    def line(label: bool, rows_: int, tokens: float, weight: float = 1.0) -> dict[str, Any]:
        return {"split": "train", "label": label, "rows": rows_, "mean_tokens": tokens, "weight": weight * rows_}

    def titles(*lines: dict[str, Any]) -> list[str]:
        counts: Any = {"rows_in": 0, "kept": 0, "set_aside": 0, "stages": [], "rows": {"test": 1}}
        return [alarm.title for alarm in alarms.check({"labels": lines}, counts, referenced=True).alarms]

    assert titles(line(True, 60, 50), line(False, 40, 60)) == []
    assert titles(line(True, 40, 50), line(False, 50, 50)) == ["Labels weigh differently"]
    assert titles(line(True, 61, 50), line(False, 40, 50)) == ["Labels weigh differently"]
    assert titles(line(True, 40, 50, weight=1.25), line(False, 50, 50)) == []
    assert titles(line(True, 40, 50), line(False, 50, 50, weight=0.0)) == ["Labels weigh differently"]
    assert titles(line(True, 40, 90), line(False, 40, 50)) == ["Desirable answers are of another length"]
    assert titles(line(True, 39, 90), line(False, 39, 50)) == []
    assert titles(line(True, 10, 90)) == ["Only one label"]


def test_the_weight_that_balances_the_labels_is_told() -> None:
    rows_ = [completion([n, 2]) | {"label": n % 5 == 0, "weight": None, "prompt_id": str(n)} for n in range(100)]
    found = {alarm.title: alarm for alarm in checked("unpaired", rows_).alarms}["Labels weigh differently"]
    assert found.found == "train: 20 desirable against 80 undesirable, as sums of weights"
    assert "multiplying the weights of desirable rows by 4 gives 1" in found.advice
    weighed = [row | {"weight": 4.0 if row["label"] else 1.0} for row in rows_]
    assert "Labels weigh differently" in checked("unpaired", weighed).sound


def test_an_answer_with_both_labels_raises_an_alarm() -> None:
    def labelled(*rows_: tuple[str, int, bool]) -> list[str]:
        made = [
            completion([token, 2], prompt=prompt) | {"label": label, "weight": None} for prompt, token, label in rows_
        ]
        return [alarm.title for alarm in checked("unpaired", made).alarms]

    title = "Answers that are desirable and undesirable"
    assert title in labelled(("a", 1, True), ("a", 1, False), ("b", 3, True))
    assert title not in labelled(("a", 1, True), ("a", 2, False), ("b", 1, False), ("a", 1, True))


# -- rows and pieces -----------------------------------------------------------------------------------------------

SPOKEN = "Zürich 你好 👩‍👩‍👧 naïve\n\n  two  spaces\tend "


@pytest.mark.parametrize("style", STYLES)
def test_pieces_are_the_text_cut_between_tokens(style: str, tmp_path: Path) -> None:
    decoder, ids = _decoder_and_ids(style, SPOKEN, tmp_path)
    found = decoder.pieces(ids)
    assert [piece.start for piece in found] == [0, *(piece.end for piece in found[:-1])]
    assert found[-1].end == len(ids)
    assert "".join(piece.text for piece in found) == decoder.text(ids)


@pytest.mark.parametrize("style", STYLES)
def test_any_ids_have_pieces(style: str, tmp_path: Path) -> None:
    decoder, ids = _decoder_and_ids(style, SPOKEN, tmp_path)
    generator = np.random.default_rng(0)
    for _ in range(30):
        drawn = generator.integers(0, max(ids) + 40, 25).tolist()
        found = decoder.pieces(drawn)
        assert sum(piece.end - piece.start for piece in found) == 25
    assert decoder.pieces([]) == []


def _decoder_and_ids(style: str, text: str, folder: Path) -> tuple[pieces.Decoder, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(build(folder, style)))
    return pieces.Decoder(tokenizer), tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_the_regenerated_segment_is_marked_on_both_sides(version: Version, world: World) -> None:
    shown = rows.shown(
        version.table("test").append_column("split", pa.array(["test"] * 3)), ("chosen", "rejected"), world.decoder
    )
    marked = {
        answer.name: "".join(piece.text for name, found in answer.parts if name for piece in found)
        for answer in shown[0].answers
    }
    assert marked == {"chosen": "a cat", "rejected": "some dogs"}


def test_unlikely_tokens_have_darker_shades_and_unscored_ones_none(world: World) -> None:
    logps = [0.0, -0.3, -2.0, -20.0]
    row = pair([5, 6, 7, 8], [5, 6, 7, 9], logps=(logps, logps), chosen_loss_mask=[True, True, True, False])
    table = rows_table("pairs", [row]).append_column("split", pa.array(["train"]))
    chosen, rejected = rows.shown(table, ("chosen", "rejected"), world.decoder)[0].answers
    levels = [[piece.level for _, found in answer.parts for piece in found] for answer in (chosen, rejected)]
    assert levels[1] == sorted(levels[1], key=lambda level: level or 0)
    assert len(set(levels[1])) == 4
    assert levels[0] == [*levels[1][:3], None]


def test_tokens_that_were_not_scored_are_in_no_sum_and_no_mean(world: World) -> None:
    """Bytes of one character, of which one is scored; and a segment of three tokens, of which two are."""
    ids = world.ids("𝒳")[:-1]
    assert len(ids) > 1
    assert len(world.decoder.pieces(ids)) == 1
    rest = len(ids) - 1
    row = pair(ids, [9], logps=([-1.0, *[-5.0] * rest], [-1.0]), chosen_loss_mask=[True, *[False] * rest])
    table = rows_table("pairs", [row]).append_column("split", pa.array(["train"]))
    chosen = rows.shown(table, ("chosen", "rejected"), world.decoder)[0].answers[0]
    assert chosen.parts[0][1][0].logp == -1.0
    segments = {
        "ref_chosen_token_logps": [[-9.0, -1.0, -5.0, -3.0], [-1.0, -2.0], [-1.0, -2.0]],
        "chosen_loss_mask": [[True, True, False, True], None, [False, False]],
    }
    assert plots.slice_means(pa.table(segments), "chosen", [1, 0, 0], [4, 2, 2]) == [-2.0, -1.5, None]


def test_rows_end_where_the_page_would_grow_too_large(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows_table("pairs", [world.pair(str(n), "yes " * 20, "no") for n in range(30)])
    table = table.append_column("split", pa.array(["train"] * 30))
    whole = rows.shown(table, ("chosen", "rejected"), world.decoder)
    assert len(whole) == 30
    monkeypatch.setattr(
        rows,
        "MOST_TOKENS",
        sum(len(ids) for side in ("chosen", "rejected") for ids in table[f"{side}_ids"][:7].to_pylist()),
    )
    assert rows.shown(table, ("chosen", "rejected"), world.decoder) == whole[:7]
    monkeypatch.setattr(rows, "MOST_TOKENS_OF_ANSWER", 5)
    cut = rows.shown(table, ("chosen", "rejected"), world.decoder)[0].answers[0]
    assert sum(len(found) for _, found in cut.parts) <= 5
    assert cut.more == f"{len(table['chosen_ids'][0]) - 5} more tokens"


def test_overlap_counts_tokens_whatever_their_order() -> None:
    table = rows_table("pairs", [pair([1, 2, 2, 3], [2, 1, 2]), pair([1, 1], [1]), pair([1], [2])])
    assert plots.overlaps(table) == [3 / 4, 1 / 2, 0]


# -- the sample ----------------------------------------------------------------------------------------------------


def many(n: int) -> list[dict[str, Any]]:
    return [pair([1, 2, number], [1, 3], prompt=f"p{number}") for number in range(n)]


def test_small_versions_are_read_whole(tmp_path: Path) -> None:
    drawn = sample.draw(publish(tmp_path / "data", train=many(20), test=many(3)))
    assert sorted(drawn.rows["row_id"].to_pylist()) == sorted(row["row_id"] for row in [*many(20), *many(3)])
    assert Counter(drawn.rows["split"].to_pylist()) == {"train": 20, "test": 3}
    assert drawn.sentence() == "all 23 rows"


def test_a_draw_depends_on_the_rows_and_not_on_their_order_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = publish(tmp_path / "one", train=many(40))
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 13)
    other = publish(tmp_path / "two", train=many(40)[::-1])
    assert len(other.files("train")) == 4
    found = [sample.draw(each, rows=10).rows["row_id"].to_pylist() for each in (one, other)]
    assert found[0] == found[1]
    assert len(found[0]) == 10
    assert sample.draw(one, rows=10, seed=1).rows["row_id"].to_pylist() != found[0]


def test_a_large_version_is_read_in_part_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 5)
    version = publish(tmp_path / "data", train=many(50), test=many(10))
    read: list[str] = []
    whole = Version.read
    monkeypatch.setattr(
        Version, "read", lambda self, entry, columns=None: read.append(entry["path"]) or whole(self, entry, columns)
    )
    drawn = sample.draw(version, rows=8)
    assert len(read) == sample.MOST_FILES
    assert drawn.sentence() == "8 of 60 rows, drawn at random, from 4 of its 12 files"
    assert drawn.sentence(3) == "3 of 60 rows, drawn at random, from 4 of its 12 files"


def test_a_sample_of_long_answers_is_bounded_by_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows whatever files they are in, and at least one."""
    each = sum(many(1)[0][f"{text}_tokens"] for text in ("prompt", "chosen", "rejected"))
    version = publish(tmp_path / "data", train=many(40))
    first = sample.draw(version).rows["row_id"].to_pylist()
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 13)
    cut = publish(tmp_path / "cut", train=many(40))
    for most, kept in ((each * 40, 40), (each * 40 - 1, 39), (each * 3, 3), (1, 1)):
        monkeypatch.setattr(sample, "MOST_TOKENS", most)
        assert sample.draw(version).rows["row_id"].to_pylist() == first[:kept]
        assert sample.draw(cut).rows["row_id"].to_pylist() == first[:kept]
    assert sample.draw(version).sentence() == "1 of 40 rows, drawn at random"


def test_columns_that_no_page_shows_are_not_read(tmp_path: Path) -> None:
    version = publish(tmp_path / "data", train=many(2))
    assert {"tools", "prompt_ids"} <= set(version.columns()) - set(sample.draw(version).rows.column_names)


def test_an_empty_split_is_no_obstacle(tmp_path: Path) -> None:
    drawn = sample.draw(publish(tmp_path / "data", train=many(2), test=[]))
    assert drawn.rows.num_rows == 2


# -- drawings ------------------------------------------------------------------------------------------------------


def test_the_bars_of_a_histogram_are_shares_of_its_values() -> None:
    """Read back from the drawing: heights over the axis add up to one."""
    drawn = charts.histogram("Lengths", [Series.of("a", "plain", [1.0, 2.0, 2.0, 3.0, 10.5])], "tokens")
    assert drawn is not None
    path = re.findall(r'd="M([^"]+)Z"', drawn)[0]
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", path.strip())]
    floor = points[0][1]
    heights = [floor - y for (_, y), (_, z) in zip(points[1:-1:2], points[2:-1:2], strict=True) if y == z]
    tallest = max(heights)
    assert [round(height / tallest * 2) for height in heights if height > 0] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    "values",
    [
        *([3.0], [0.0, 0.0], [-1e-9, 1e9], [float("nan"), None, 1.0], list(range(5000))),
        *([1e17], [1e17, 1e17 + 16], [1e300], [-1e300], [1e308], [-1e308, 1e308], [5e-324, 0.0], [-2.0, -1.0]),
    ],
    ids=str,
)
def test_any_values_can_be_drawn(values: list[float | None]) -> None:
    series = Series.of("a", "plain", values)
    drawn = charts.histogram("x", [series], "y")
    assert drawn is not None
    points = [value for value in values if value is not None]
    line = charts.curves("x", [charts.Curve("a", "plain", range(len(points)), points)], zero=True)
    for figure in (drawn, line, charts.scatter("x", series, series)):
        assert figure is not None
        assert not re.search("nan|inf", str(figure))


def test_nothing_to_draw_is_no_figure() -> None:
    nothing = Series.of("a", "plain", [None, float("inf")])
    assert charts.histogram("x", [nothing], "y") is None
    assert charts.scatter("x", nothing, nothing) is None
    assert charts.curves("x", [charts.Curve("a", "plain", [1], [float("nan")])]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (-12.34, "−12.3"),
        (150, "150"),
        (12345, "12k"),
        (2e-5, "2.0e−5"),
        (3e7, "3.0e7"),
        (100, "100"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_lineage_is_drawn_from_the_sources_on(world: World, tmp_path: Path) -> None:
    root = tmp_path / "data"
    first = publish(root, reference=False)
    generator = {"name": "models/<writer>", "digest": "g" * 64, "parameters": 12, "dtype": "float32"}
    judge = {"name": "models/tiny", "digest": "a" * 64, "dtype": "float32"}  # what `publish` takes for its reference
    parents = [versions.parent_entry(first, str(root))]
    second = publish(root, parents=parents, build="build-x", round=1, generator=generator)
    third = publish(root, parents=[versions.parent_entry(second, str(root))], generator=judge)
    boxes = ancestry.boxes(third)
    told = [(box.kind, box.title, [boxes[parent].title for parent in box.parents]) for box in boxes]
    assert told == [
        ("source", "here", []),
        ("version", "v1", ["here"]),
        ("model", "models/<writer>", []),
        ("model", "models/tiny", []),
        ("version", "v2", ["v1", "models/<writer>", "models/tiny"]),
        ("version", "v3", ["v2", "models/tiny"]),
    ]
    assert "<writer>" not in ancestry.drawing(boxes)


def test_a_lineage_that_ends_in_a_lost_version_is_drawn_so_far(tmp_path: Path) -> None:
    parents = [{"version": "v7", "logical_hash": "0" * 64}]
    boxes = ancestry.boxes(publish(tmp_path / "data", parents=parents))
    assert (boxes[0].kind, boxes[0].title) == ("lost", "v7")
    assert boxes[-1].parents[0] == 0


def test_boxes_come_after_those_they_were_made_from_and_long_lineages_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ancestry, "MOST_VERSIONS", 5)
    root, version = tmp_path / "data", None
    for _ in range(8):
        parents = [versions.parent_entry(version, str(root))] if version else []
        version = publish(root, parents=parents)
    assert version is not None
    boxes = ancestry.boxes(version)
    assert all(parent < number for number, box in enumerate(boxes) for parent in box.parents)
    assert [box.title for box in boxes if box.kind == "version"] == ["v3", "v4", "v5", "v6", "v7", "v8"][-6:]


# -- probes --------------------------------------------------------------------------------------------------------


def test_segments_are_probed_by_tokens_alone_where_no_tokenizer_is(world: World) -> None:
    made = [world.regenerated(f"q{n}", f"no {n} ", "cat", "dogs", ".") for n in range(probe.FEWEST_GROUPS)]
    table = rows_table("pairs", made, segments=True)
    for decoder, names in ((world.decoder, ["length", "format", "bag of words"]), (None, ["length", "bag of tokens"])):
        lines = [line for line in shortcuts.probed(table, decoder) if "segment" in line.question]
        assert [line.feature for line in lines] == names
        assert lines[-1].finding.auc is not None
        assert lines[-1].finding.auc.value == 1.0


def test_pairs_of_other_prompts_that_share_an_answer_are_one_group() -> None:
    table = rows_table("pairs", [pair([n // 2, 1], [n, 2], prompt=str(n)) for n in range(200)])
    assert [line.finding.groups for line in shortcuts.probed(table, None)] == [100] * 3


def test_words_of_any_length_are_cut_where_they_are_told(world: World) -> None:
    word = "w" * 5000
    rows_ = [world.pair(f"q{n}", f"it is {n} {word}", f"it is not {n}") for n in range(probe.FEWEST_GROUPS)]
    assert f"<q>{'w' * 29}…</q>" in of_version.page(world.publish(rows_)).html


# -- writing -------------------------------------------------------------------------------------------------------


def test_the_page_stands_beside_the_versions_and_the_version_is_as_it_was(
    version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", version.name, "--root", version.root]) == 0
    place = Path(version.root).parent / "reports" / Path(version.root).name / f"{version.name}.html"
    assert place.read_text(encoding="utf-8") == of_version.page(version).html
    assert re.fullmatch(rf"{re.escape(str(place))}: \d+ warnings?\n", capsys.readouterr().out)
    assert verify(version) == []


def test_the_page_goes_where_it_is_asked_to(
    version: Version, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    place = tmp_path / "deep" / "er" / "page.html"
    assert cli.main(["report", version.url, "--out", str(place)]) == 0
    assert cli.main(["report", version.url, "--out", "-"]) == 0
    assert capfdbinary.readouterr().out.endswith(place.read_bytes())
    assert [path.name for path in place.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("target", ["v99", "no/such/run"])
def test_what_is_not_there_is_said(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", target, "--root", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2


def test_a_place_that_cannot_be_written_is_said(
    version: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["report", version.url, "--out", f"{tmp_path}/file/page.html"]) == 2
    assert f"{tmp_path}/file" in capsys.readouterr().err


def test_a_version_in_an_object_store_has_its_page_in_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"memory://{tmp_path.name}/data"
    publish(root)
    monkeypatch.chdir(tmp_path)
    made = report.report("v1", root=root)
    assert Path(report.write(made)) == tmp_path / "reports" / "memory" / tmp_path.name / "data" / "v1.html"
    report.write(report.report("v1", root=root, out=f"{root}/page.html"))
    assert Storage(root).read("page.html").startswith(b"<!doctype html>")


def test_no_root_writes_over_the_page_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = tmp_path.name
    roots = [
        "one",
        "two",
        "memory",
        f"memory://{bucket}",
        f"memory://{bucket}/a",
        f"memory://{bucket}/a b",
        f"memory://{bucket}a",
    ]
    written = [report.write(report.report_version(publish(root))) for root in roots]
    assert len({Path(place).resolve() for place in written}) == len(roots)
    assert all(Path(place).resolve().is_relative_to(tmp_path / "reports") for place in written)
    assert beside._as_name("..") == "%2E%2E"


def test_a_changed_file_is_not_reported_on(tmp_path: Path) -> None:
    version = publish(tmp_path / "data")
    path = Path(version.url) / version.files("train")[0]["path"]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match="not the file that was published"):
        report.report("v1", root=str(tmp_path / "data"))
