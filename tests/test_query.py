import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata import query
from prefdata.errors import UserError
from prefdata.storage import Storage
from schemas.stats import TABLES
from tests.published import completion, pair, publish


@pytest.fixture
def root(tmp_path):
    """v1: pairs with a reference in both splits; v2: pairs without; v3: completions."""
    publish(tmp_path, train=[pair([1, 2], [1, 3]), pair([4], [5], prompt="q")], test=[pair([6], [7], prompt="r")])
    publish(
        tmp_path, train=[pair([8], [9])], reference=False, parents=[{"version": "v1", "logical_hash": "x"}], round=1
    )
    publish(tmp_path, "completions", train=[completion([1, 2, 3])], set_aside=0)
    return str(tmp_path)


def answer(text, root):
    return [tuple(row.values()) for row in query.sql(text, root).to_pylist()]


def test_versions_say_what_the_manifests_say(root):
    lines = query.sql("select * from versions", root).to_pylist()
    assert [line["version"] for line in lines] == ["v1", "v2", "v3"]
    first, second, third = lines
    assert (first["rows"], first["train_rows"], first["test_rows"]) == (3, 2, 1)
    assert all(line["rows_in"] == line["kept"] + line["set_aside"] for line in lines)
    assert (second["parents"], second["round"], second["reference"]) == (["v1"], 1, None)
    assert first["reference"] == "models/tiny@aaaaaaaaaaaa"
    assert third["kind"] == "completions"


def test_bytes_are_those_of_the_files(root):
    storage = Storage(f"{root}/v1")
    files = set(storage.walk()) - {"manifest.json"}
    on_disk = sum(len(storage.read(path)) for path in files)
    assert answer("select bytes from versions where version = 'v1'", root) == [(on_disk,)]


def test_a_parent_below_another_root_is_named_by_its_url(root):
    publish(root, parents=[{"version": "v1", "logical_hash": "x", "url": "s3://elsewhere/v1"}])
    assert answer("select parents from versions where version = 'v4'", root) == [(["s3://elsewhere/v1"],)]


def test_a_manifest_that_cannot_be_read_does_not_stop_queries_about_others(root):
    Storage(root).write("v2/manifest.json", b"{}")
    assert answer("select version from versions", root) == [("v1",), ("v3",)]
    with pytest.raises(UserError, match=r"v2/manifest\.json"):
        query.sql("from v2", root)


def test_tags_stand_beside_their_version(root):
    Storage(root).write("tags/best", b"v2\n")
    assert answer("select version, tags from versions where len(tags) > 0", root) == [("v2", ["best"])]


def test_a_version_is_its_splits_with_their_names(root):
    assert answer("select split, chosen_ids from v1 order by row_id", root) == [
        ("train", [1, 2]),
        ("train", [4]),
        ("test", [6]),
    ]


def test_pairs_are_all_versions_by_name_and_what_a_version_lacks_is_null(root):
    found = answer("select version, count(*), count(ref_chosen_logps) from pairs group by all order by all", root)
    assert found == [("v1", 3, 3), ("v2", 1, 0)]
    assert answer("select version, completion_ids from completions", root) == [("v3", [1, 2, 3])]


def test_ledgers_add_up_with_the_versions(root):
    found = answer("select version, status, count(*) from ledger group by all", root)
    stated = answer(
        "select version, 'kept', kept from versions union select version, 'set_aside', set_aside from versions", root
    )
    assert sorted(found) == sorted(line for line in stated if line[2])


def test_every_stats_table_is_a_view(root):
    views = {name for (name,) in answer("show tables", root)}
    assert views >= {"versions", "v1", "v2", "v3", "pairs", "completions", "ledger", *TABLES}
    assert {line[0] for line in answer("select version from reference", root)} == {"v1", "v3"}
    assert answer("select rows from counts where version = 'v1' order by split", root) == [(1,), (2,)]


def test_one_query_over_two_views_joins_them(root):
    found = answer(
        "select version, round from versions join lengths using (version) where side = 'rejected' group by all order by 1",
        root,
    )
    assert found == [("v1", 0), ("v2", 1)]


def test_without_versions_the_views_are_empty_and_have_their_columns(tmp_path):
    for view in ("versions", "pairs", "completions", "ledger", *TABLES):
        assert answer(f"select * from {view}", str(tmp_path)) == []
    assert query.sql("select chosen_ids, version, split from pairs", str(tmp_path)).num_rows == 0


def test_plain_duckdb_and_polars_read_the_same_files(root):
    plain = duckdb.sql(f"select mean from '{root}/v1/stats/lengths.parquet' where side = 'chosen'").fetchall()
    assert plain == answer("select mean from lengths where version = 'v1' and side = 'chosen'", root)
    assert pl.read_parquet(f"{root}/v1/train/*.parquet")["chosen_ids"].to_list() == [[1, 2], [4]]


@pytest.mark.parametrize(("odd", "decoy"), [("it's [a]", "it's a"), ("all*", "all of it"), ("why?", "whys")])
def test_a_root_whose_name_holds_special_characters(odd, decoy, tmp_path):
    publish(tmp_path / odd, train=[pair([1], [2])])
    publish(tmp_path / decoy, train=[pair([3], [4])])
    assert answer("select chosen_ids from v1", str(tmp_path / odd)) == [([1],)]


def test_an_object_store_is_read_through_its_file_system():
    root = "memory://query-test"
    publish(root, train=[pair([1], [2])])
    assert answer("select version, chosen_ids from pairs", root) == [("v1", [1])]
    assert answer("select count(*) from lengths", root) == [(3,)]


WRITES = [
    "copy v1 to '{out}'",
    "copy (select 1) to '{out}'",
    "with x as (copy (select 1) to '{out}') select * from x",
    "with y as (with x as (copy (select 1) to '{out}') select * from x) select * from y",
    "select (with x as (copy (select 1) to '{out}') select * from x)",
    "explain analyze with x as (copy (select 1) to '{out}') select * from x",
    "explain analyze copy (select 1) to '{out}'",
    "-- explain\nexplain analyze copy (select 1) to '{out}'",
    "/* explain */ explain analyze with x as (copy (select 1) to '{out}') select * from x",
    "attach '{out}'",
    "export database '{out}'",
    "prepare p as copy (select 1) to '{out}'",
    "select 1; copy (select 1) to '{out}'",
    "set home_directory = '{out}'",
    "install httpfs",
    "create table t as select 1",
    "insert into v1 select * from v1",
    "with x as (insert into v1 select * from v1 returning *) select * from x",
    "pragma enable_profiling",
]


@pytest.mark.parametrize("text", WRITES)
def test_what_writes_is_refused(text, root, tmp_path):
    out = tmp_path / "written"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"only read|one SQL statement"):
        query.sql(text.format(out=out), root)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["{}", "from ({})", "with x as ({}) from x", "explain {}"])
def test_a_pivot_that_does_not_name_its_columns_is_told_how(text, root):
    bare = "pivot lengths on split using first(mean) group by version, side"
    with pytest.raises(UserError, match=r"from \(pivot TABLE on COLUMN in \(VALUE, "):
        query.sql(text.format(bare), root)
    assert query.sql(text.format(bare.replace("on split", "on split in ('train')")), root).num_rows > 0


READS = [
    "select 'copy' as type",
    "from versions",
    "values (1)",
    "table versions",
    "describe v1",
    "summarize lengths",
    "show tables",
    "explain select * from v1",
    "-- why\nexplain analyze select * from v1",
    "with recursive t as (select 1 as a union all select a + 1 from t where a < 3) select * from t",
    "select 1 union all select 2",
    "select list_transform([1], lambda x: x + 1), exists(from v1), (select 'INSERT_QUERY_NODE')",
    "from (pivot lengths on split in ('train', 'test') using first(mean) group by version, side)",
    "select 1;",
]


@pytest.mark.parametrize("text", READS)
def test_what_reads_is_answered(text, root):
    assert query.sql(text, root).num_rows > 0


def test_a_missing_version_is_named_with_those_there_are(root):
    with pytest.raises(UserError, match=r"'v9'.*v1, v2, v3"):
        query.sql("select * from v9", root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("selec 1", "syntax error"),
        ("", "one SQL statement"),
        ("select nothing from v1", "nothing"),
        ("select * from connection", "connection does not exist"),  # a name that Python knows and SQL doesn't
        ("select error('stop') from v1", "stop"),
        ("select * from 'absent.parquet'", "absent.parquet"),
    ],
)
def test_bad_sql_is_told_in_a_line_or_two(text, words, root):
    with pytest.raises(UserError, match=words) as caught:
        query.sql(text, root)
    assert len(str(caught.value).splitlines()) <= 2


def test_an_error_in_the_middle_of_an_answer_is_told_too(root):
    reader = query.stream("select case when range > 50000 then error('late') else range end from range(100000)", root)
    with pytest.raises(UserError, match="late"):
        reader.read_all()


def test_an_answer_comes_in_batches(root):
    reader = query.stream("select * from range(100000)", root)
    sizes = [batch.num_rows for batch in reader]
    assert sum(sizes) == 100000
    assert max(sizes) <= query.BATCH_ROWS


def test_a_damaged_version_does_not_stop_queries_about_others(root):
    for path in ("v2/train/part-00000.parquet", "v2/ledger/part-00000.parquet"):
        Storage(root).remove(path)
    assert answer("select count(*) from v1", root) == [(3,)]
    assert len(answer("from versions", root)) == 3
    with pytest.raises(UserError, match="v2: train/part-00000"):
        query.sql("select * from pairs", root)


def test_a_further_table_of_statistics_becomes_a_view(root):
    version = publish(root)
    path = f"{version.url}/stats/topics.parquet"
    pq.write_table(pa.table({"topic": ["tea"]}), path)
    version.manifest["files"].append({"path": "stats/topics.parquet", "sha256": "", "bytes": 0, "rows": 1})
    views = query._views([version], None)
    assert duckdb.sql(views["topics"]).fetchall() == [("v4", "tea")]
