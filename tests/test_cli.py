import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from prefdata import cli, printing
from prefdata.errors import UserError
from prefdata.storage import Storage
from tests.published import pair, publish


@pytest.fixture
def root(tmp_path, monkeypatch):
    """v1 and v2, of one pair each."""
    where = tmp_path / "data"
    publish(where, train=[pair([1, 2], [1, 3], text=("one\ntwo", "[bold]x" + "long " * 100))])
    publish(where, reference=False)
    monkeypatch.delenv("PREFDATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)  # so that ./data is the default
    return str(where)


@pytest.fixture
def run(root, capsys):
    """Run the command line: status, what it printed, what it complained of."""

    def run(*argv):
        status = cli.main(argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def terminal(monkeypatch):
    """Make the standard output a terminal of 100 columns."""
    monkeypatch.setattr(printing, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")


def test_versions_are_listed(run):
    status, out, _ = run("versions")
    header, *lines = out.splitlines()
    assert status == 0
    assert header.split()[:3] == ["version", "kind", "build"]
    assert [line.split()[:3] for line in lines] == [["v1", "pairs", "ingest"], ["v2", "pairs", "ingest"]]


def test_no_versions_is_said_and_is_no_error(run):
    status, out, err = run("versions", "--root", "elsewhere")
    assert (status, out) == (0, "")
    assert "no versions yet in 'elsewhere'" in err


@pytest.mark.parametrize("argv", [("--root", "{root}", "versions"), ("versions", "--root", "{root}")])
def test_root_may_stand_before_or_after_the_command(argv, run, root, monkeypatch):
    monkeypatch.chdir("/")
    assert "v1" in run(*(part.format(root=root) for part in argv))[1]


def test_show_tells_everything_a_manifest_knows(run, root):
    status, out, _ = run("show", "v1")
    manifest = json.loads(Storage(root).read("v1/manifest.json"))
    assert status == 0
    for entry in manifest["files"]:
        assert entry["path"] in out
        assert entry["sha256"] in out
    for value in (
        manifest["logical_hash"],
        manifest["tokenizer"]["digest"],
        manifest["reference"]["digest"],
        "chosen_empty",
    ):
        assert value in out
    assert "a page long" not in out  # the template's text; its digest is there


def test_verify_finds_sound_versions_sound(run):
    status, out, _ = run("verify", "--all")
    assert (status, out) == (0, "v1: sound\nv2: sound\n")


def test_verify_names_the_file_that_changed(run, root):
    path = "train/part-00000.parquet"
    data = Storage(f"{root}/v2").read(path)
    Storage(f"{root}/v2").write(path, data[:-1] + bytes([data[-1] ^ 1]))
    status, out, _ = run("verify", "--all")
    assert status == 1
    assert out.startswith("v1: sound\nv2: 1 problem\n")
    assert path in out
    assert run("verify", "v1")[0] == 0
    assert run("verify", "v1", "v2")[0] == 1


def test_verify_goes_on_after_a_manifest_that_cannot_be_read(run, root):
    Storage(root).write("v1/manifest.json", b"{")
    status, out, _ = run("verify", "--all")
    assert status == 1
    assert "v1/manifest.json" in out
    assert "v2: sound" in out


def test_verify_goes_on_after_a_version_that_is_not_there(run, root):
    status, out, err = run("verify", "v1", "v99", "v2")
    assert (status, out) == (2, "v1: sound\nv2: sound\n")
    assert err.startswith("prefdata: there is no version or tag 'v99'")
    Storage(root).write("v2/manifest.json", b"{")
    status, out, _ = run("verify", "v99", "v2", "v1")
    assert status == 2
    assert out.startswith("v2: 1 problem\n")
    assert out.endswith("v1: sound\n")


def test_a_damaged_version_is_said_where_the_others_are_listed(run, root):
    Storage(root).write("v1/manifest.json", b"{}")
    status, out, err = run("versions")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["version", "v2"]
    assert err.startswith("prefdata: warning: not listed: ")
    assert "v1/manifest.json" in err
    Storage(root).write("v2/manifest.json", b"{}")
    status, out, err = run("versions")
    assert (status, out) == (0, "")
    assert "no version that can be read" in err


@pytest.mark.parametrize("content", [b"[]", b'{"format": "prefdata/99"}', b'{"format": "prefdata/1", "version": "v1"}'])
def test_verify_finds_what_is_no_manifest(content, run, root):
    Storage(root).write("v1/manifest.json", content)
    status, out, err = run("verify", "--all")
    assert (status, err) == (1, "")
    assert out.startswith("v1: 1 problem\n")
    assert "v1/manifest.json" in out
    assert "v2: sound" in out


def test_verify_finds_a_copied_folder(run, root):
    shutil.copytree(f"{root}/v1", f"{root}/v9")
    status, out, _ = run("verify", "--all")
    assert status == 1
    assert "v9: 1 problem" in out
    assert run("verify", f"{root}/v9")[0] == 0
    assert [line.split()[0] for line in run("versions")[1].splitlines()] == ["version", "v1", "v2"]


def test_a_parent_below_another_root_is_shown_by_its_url(run, root):
    parent = {"version": "v1", "logical_hash": "x", "url": "s3://elsewhere/v1"}
    publish(root, parents=[parent, {"version": "v2", "logical_hash": "y"}])
    assert "s3://elsewhere/v1, v2" in run("show", "v3")[1].replace('"', "")
    assert "s3://elsewhere/v1" in run("versions")[1]


def test_verify_passes_over_what_was_never_published(run, root):
    Storage(root).write("v3/claim", b"{}")
    status, out, _ = run("verify", "--all")
    assert (status, out) == (0, "v1: sound\nv2: sound\n")


def test_stats_shows_all_tables_or_those_asked_for(run):
    _, everything, _ = run("stats", "v1")
    status, two, _ = run("stats", "v1", "lengths", "counts")
    assert status == 0
    assert two.startswith("lengths\nsplit")
    assert "\ncounts\n" in two
    assert "reference_margin" in everything
    assert "reference_margin" not in two
    assert "scores" not in everything  # no row carries one
    assert run("stats", "v1", "scores")[1].startswith("scores\nsplit")


def test_sql_as_json_and_csv_are_the_same_answer(run):
    question = "select version, split, side, mean, cut_share from lengths where version = 'v1'"
    as_json = json.loads(run("sql", question, "--format", "json")[1])
    as_lines = [json.loads(line) for line in run("sql", question, "--format", "jsonl")[1].splitlines()]
    as_csv = list(csv.DictReader(io.StringIO(run("sql", question, "--format", "csv")[1])))
    assert len(as_json) == 3
    assert as_lines == as_json
    assert [{**row, "mean": float(row["mean"]), "cut_share": float(row["cut_share"] or "nan")} for row in as_csv] == [
        {
            **row,
            "cut_share": pytest.approx(row["cut_share"] if row["cut_share"] is not None else float("nan"), nan_ok=True),
        }
        for row in as_json
    ]


def test_json_is_valid_whatever_the_values(run):
    question = (
        "select 'nan'::double as a, [1.5, 'inf'::double] as b, {'k': date '2026-01-02'} as c, 1.25::decimal(4, 2) as d, "
        "'x'::blob as e, timestamp '2026-01-02 03:04:05' as f, 12345678901234567890::hugeint as g"
    )
    (row,) = json.loads(run("sql", question, "--format", "json")[1], parse_constant=pytest.fail)
    assert row["a"] is None
    assert row["b"] == [1.5, None]
    assert row["c"] == {"k": "2026-01-02"}
    assert row["d"] == 1.25


TWICE = "select 1 as a, 2 as a, 3 as a_1, 4 as a"


def test_columns_of_one_name_are_all_there(run, tmp_path):
    assert run("sql", TWICE)[1].split() == ["a", "a", "a_1", "a", "1", "2", "3", "4"]
    assert run("sql", TWICE, "--format", "csv")[1] == "a,a,a_1,a\n1,2,3,4\n"
    apart = {"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}
    assert json.loads(run("sql", TWICE, "--format", "json")[1]) == [apart]
    assert json.loads(run("sql", TWICE, "--format", "jsonl")[1]) == apart
    path = tmp_path / "twice.parquet"
    assert run("sql", TWICE, "-o", str(path))[0] == 0
    assert pq.read_table(path).to_pylist() == [apart]


def test_columns_of_one_name_on_a_terminal(run, terminal):
    assert run("sql", TWICE)[1].split()[-4:] == ["1", "2", "3", "4"]


def test_a_join_keeps_the_same_column_of_both_sides(run):
    status, out, _ = run("sql", "select a.row_id, b.row_id from v1 a join v2 b using (prompt_id)", "--format", "json")
    assert status == 0
    assert [list(row) for row in json.loads(out)] == [["row_id", "row_id_1"]]


@pytest.mark.parametrize("format_", ["json", "jsonl"])
def test_integers_keep_all_their_digits(format_, run):
    long = 12345678901234567890123456789
    question = f"select sum(rows) as total, {long}::hugeint as long, [{long}::hugeint] as many, 2.00::decimal(4, 2) as part from versions"
    found = json.loads(run("sql", question, "--format", format_)[1], parse_float=lambda text: ("float", text))
    row = found if format_ == "jsonl" else found[0]
    assert row == {"total": 2, "long": long, "many": [long], "part": ("float", "2.0")}


@pytest.mark.parametrize("limit", ["-1", "1.5", "ten", ""])
def test_a_limit_counts_rows(limit, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("sql", "from versions", "--limit", limit)
    assert stopped.value.code == 2
    assert f"{limit!r} is not a whole number from 0 on" in capsys.readouterr().err


def test_an_empty_answer_is_valid_in_every_format(run):
    question = "select * from versions where false"
    assert json.loads(run("sql", question, "--format", "json")[1]) == []
    assert run("sql", question, "--format", "jsonl")[1] == ""
    assert run("sql", question, "--format", "csv")[1].startswith("version,kind")
    assert run("sql", question)[1].startswith("version")


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_a_file_gets_the_format_of_its_name(ending, run, tmp_path):
    path = tmp_path / f"answer.{ending}"
    assert run("sql", "select chosen_ids from v1", "-o", str(path))[:2] == (0, "")
    if ending == "parquet":
        assert pq.read_table(path).to_pylist() == [{"chosen_ids": [1, 2]}]
    else:
        assert "[1, 2]" in path.read_text()


def test_a_failing_query_leaves_the_old_file_and_nothing_else(run, tmp_path):
    path = tmp_path / "answer.csv"
    path.write_text("old")
    late = "select case when range > 50000 then error('late') else range end from range(100000)"
    status, _, err = run("sql", late, "-o", str(path))
    assert (status, path.read_text()) == (2, "old")
    assert "late" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["answer.csv", "data"]


def test_a_query_can_come_from_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("select 6 * 7 as x"))
    assert run("sql", "-")[1].split() == ["x", "42"]


def test_a_pipe_gets_whole_cells_on_one_line_each(run):
    out = run("sql", "select rejected, chosen from v1")[1]
    assert len(out.splitlines()) == 2
    assert "long " * 100 in out
    assert "…" not in out
    text = run("sql", "select chosen[1].content as text, row_id from v1")[1]
    assert "one\\ntwo" in text


def test_a_terminal_gets_wrapped_cells_and_markup_stays_text(run, terminal):
    out = run("sql", "select version, rejected from pairs where version = 'v1'")[1]
    assert max(map(len, out.splitlines())) <= 100
    assert "…" in out
    assert "[bold]" in out


def test_a_table_too_wide_for_the_terminal_is_printed_plainly(run, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert run("versions")[1].splitlines()[0].split()[:2] == ["version", "kind"]


def test_a_terminal_gets_the_first_rows_and_is_told_so(run, terminal):
    _, out, err = run("sql", "select * from range(1000)")
    assert "99" in out
    assert "100\n" not in out
    assert "--limit 0" in err
    assert "999" in run("sql", "select * from range(1000)", "--limit", "0")[1]


def test_a_pipe_gets_all_rows(run):
    assert len(run("sql", "select * from range(1000)")[1].splitlines()) == 1001


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["show", "v9"], "'v9'.*v1, v2"),
        (["stats", "v1", "nothing"], "no statistics called 'nothing'.*lengths"),
        (["stats", "v2", "reference"], "no statistics called 'reference'"),
        (["verify"], "--all"),
        (["verify", "v1", "--all"], "--all"),
        (["verify", "v9"], "'v9'"),
        (["sql", "selec"], "syntax error"),
        (["sql", "from v9"], "'v9'.*v1, v2"),
        (["sql", "copy v1 to 'x'"], "only read"),
        (["sql", "from v1", "-o", "x.xlsx"], "--format"),
        (["sql", "from v1", "-o", "/no/such/folder/x.csv"], "cannot write"),
        (["sql", "from v1", "--format", "parquet"], "-o"),
        (["sql", "from v1", "--format", "table", "-o", "x"], "--format"),
        (["sql", "from versions", "--root", "nowhere://x"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(argv, words, run):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("prefdata: ")
    assert len(err.splitlines()) <= 2
    with pytest.raises(UserError, match=words):
        raise UserError(err)


def test_a_reader_that_leaves_early_is_no_error(root):
    command = [sys.executable, "-m", "prefdata", "sql", "select * from range(1000000)", "--format", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(root)) as process:
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.BROKEN_PIPE


def test_an_interrupt_is_quiet(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("prefdata.versions.every", interrupted)
    assert run("versions") == (130, "", "")


def environment(root):
    package = os.path.dirname(os.path.dirname(cli.__file__))
    return {**os.environ, "PREFDATA_ROOT": root, "PYTHONPATH": package}


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert "--root" in capsys.readouterr().out


def test_a_command_is_one_function(run, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", dict(cli.COMMANDS))

    @cli.command(cli.argument("name"))
    def say_hello(args):
        """Greet.

        At length.
        """
        print(f"hello {args.name}")
        return 7

    assert run("say-hello", "you") == (7, "hello you\n", "")
    assert cli.COMMANDS["say-hello"].help == "Greet"


def test_a_tag_names_moves_lists_and_goes(run, root):
    assert run("tag") == (0, "tag  version\n", "")
    assert run("tag", "best", "v1") == (0, "best: names v1\n", "")
    assert run("tag", "best", "v1") == (0, "best: names v1\n", "")
    assert run("tag", "best", "v2") == (0, "best: names v2, moved from v1\n", "")
    assert run("tag", "newest", "latest")[1] == "newest: names v2\n"
    assert run("tag", "also", "best")[1] == "also: names v2\n"  # the version, not the tag
    assert [line.split() for line in run("tag")[1].splitlines()[1:]] == [
        ["also", "v2"],
        ["best", "v2"],
        ["newest", "v2"],
    ]
    assert run("verify", "best")[1] == "v2: sound\n"
    assert run("tag", "--delete", "best") == (0, "best: removed, it named v2\n", "")
    assert "best" not in run("tag")[1]
    assert run("verify", "v2")[0] == 0


@pytest.mark.parametrize(
    "name",
    [
        *("v3", "V3", "v03", "v", "v٣", "latest", "LATEST"),
        *("a/b", "../v1", "a\\b", "s3://x", ".", "..", ".tmp-x", "_x"),
        *("", " ", "a b", "a\nb", "a\n", "\x1b[2J", "x" * 101),
    ],
)
def test_a_name_that_cannot_be_a_tag_is_refused(run, root, name):
    before = sorted(Storage(root).walk())
    status, out, err = run("tag", name, "v1")
    assert (status, out) == (2, "")
    assert "can't be a tag" in err
    assert "\x1b" not in err
    assert sorted(Storage(root).walk()) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("tag", "best"), "say which version"),
        (("tag", "best", "v9"), "no version or tag 'v9'"),
        (("tag", "best", "v3"), "no version or tag 'v3'"),  # claimed, not whole
        (("tag", "best", "v4"), "v4/manifest.json can't be read"),
        (("tag", "--delete", "best"), "no tag 'best'"),
        (("tag", "--delete", "../v1"), "no tag"),
        (("tag", "--delete", "a/b"), "no tag"),
        (("tag", "--delete", "a", "b"), "nothing else"),
    ],
)
def test_a_tag_that_would_name_nothing_is_refused(run, root, argv, words):
    Storage(root).write("v3/claim", b"{}")
    Storage(root).write("v4/manifest.json", b"{")
    Storage(root).write("tags/a/b", b"v1")
    before = sorted(Storage(root).walk())
    status, _, err = run(*argv)
    assert status == 2
    assert words in err
    assert sorted(Storage(root).walk()) == before


def test_a_tag_names_only_a_version_beside_it(run, root, tmp_path):
    elsewhere = publish(tmp_path / "elsewhere")
    assert "is not in" in run("tag", "best", elsewhere.url)[2]
    assert run("tag", "best", f"{root}/v1")[0] == 0
