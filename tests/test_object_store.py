"""Versions in an object store, over HTTP: the promises, the errors in words, and the commands."""

import functools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from flows import add_reference, build_sapo_negatives, ingest
from prefdata import cli, gc, object_store, query, versions
from prefdata.errors import Unreachable, UserError
from prefdata.storage import Storage
from prefdata.verify import verify
from prefdata.work import Work
from tests import published
from tests.s3_server import S3Server
from trainers import run as trainer

ROOT = Path(__file__).parent.parent
MIB = 2**20


@pytest.fixture
def root(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of a bucket, as a user would set it."""
    url = f"{s3.bucket()}/some/prefix"
    monkeypatch.setenv("PREFDATA_ROOT", url)
    return url


# -- one creator ---------------------------------------------------------------------------------------------------


def test_a_create_in_parts_refuses_a_name_that_is_taken(root: str, s3: S3Server) -> None:
    storage = Storage(root, skip_instance_cache=True)
    storage.fs.pipe_file = functools.partial(storage.fs.pipe_file, chunksize=5 * MIB)
    large = os.urandom(MIB) * 11
    assert storage.create("v1/part", large)
    assert not storage.create("v1/part", b"x" + large)
    assert storage.read("v1/part") == large
    assert sum(method == "PUT" and "partNumber" in path for method, path in s3.requests) >= 2 * 3


def test_a_create_is_tried_again_when_the_store_saw_two_at_once(root: str, s3: S3Server) -> None:
    fault = s3.fail("PUT", "/claim", 409, "ConditionalRequestConflict", times=3)
    assert Storage(root).create("v1/claim", b"mine")
    assert fault.times == 0
    assert Storage(root).read("v1/claim") == b"mine"


def test_a_create_that_meets_others_for_ever_gives_up_in_words(
    root: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_FIRST_WAIT_S", 0.0)
    s3.fail("PUT", "/claim", 409, "ConditionalRequestConflict", times=1000)
    with pytest.raises(Unreachable, match=r"cannot write into s3://.*/v1 \(others kept writing"):
        Storage(root).create("v1/claim", b"mine")


def test_a_refusal_that_does_not_name_its_condition_is_a_refusal(root: str, s3: S3Server) -> None:
    s3.fail("PUT", "/claim", 412, "PreconditionFailed")
    assert not Storage(root).create("v1/claim", b"mine")


def test_a_store_that_overwrites_is_refused_before_a_build(root: str, s3: S3Server) -> None:
    s3.keeps_conditions = False
    with pytest.raises(UserError, match="If-None-Match"):
        versions.writable(root)
    s3.mend()
    versions.writable(root)
    assert list(Storage(root).walk()) == []


# -- lost answers --------------------------------------------------------------------------------------------------


def test_a_version_whose_last_answer_was_lost_is_published_once(root: str, s3: S3Server) -> None:
    lost = s3.fail("PUT", "/manifest.json", 500, "InternalError", done=True)
    version = published.publish(root)
    assert lost.times == 0
    assert [(found.name, found.manifest) for found in versions.every(root)] == [(version.name, version.manifest)]
    assert verify(version) == []


def test_a_claim_whose_answer_was_lost_leaves_a_gap_and_nothing_else(root: str, s3: S3Server) -> None:
    s3.fail("PUT", "/claim", 500, "InternalError", done=True)
    assert published.publish(root).name == "v2"
    assert list(Storage(root).at("v1").walk()) == ["claim"]
    assert [version.name for version in versions.every(root)] == ["v2"]


def test_a_unit_whose_answer_was_lost_is_kept_once(root: str, s3: S3Server) -> None:
    work, key = Work(root), "ab" * 32
    s3.fail("PUT", key, 500, "InternalError", done=True)
    tables = {"rows": pa.table({"n": [1, 2]})}
    assert work.store(key, tables) == tables
    assert work.load(key) == tables
    assert list(work.keys()) == [key]


# -- what others wrote is seen -------------------------------------------------------------------------------------


def test_what_others_wrote_since_the_last_listing_is_seen(root: str) -> None:
    one, other = Storage(root), Storage(root, skip_instance_cache=True)
    assert one.fs is not other.fs
    one.write("a/old", b"old")
    assert list(one.walk()) == ["a/old"]
    assert list(other.walk()) == ["a/old"]
    other.write("a/new", b"new")
    assert one.read("a/new") == b"new"
    assert one.exists("a/new")
    assert list(one.walk()) == ["a/new", "a/old"]
    other.remove("a")
    assert not one.exists("a/old")
    assert one.folders() == []


def test_finished_units_of_another_process_are_found(root: str) -> None:
    mine, other = Work(root), Work(root)
    key, tables = "cd" * 32, {"rows": pa.table({"n": [1]})}
    assert not mine.done(key)
    other.store(key, tables)
    assert mine.done(key)
    assert mine.store(key, {"rows": pa.table({"n": [2]})}) == tables  # the first one wins


# -- errors in words -----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_connections() -> Iterator[None]:
    """A process reads the environment once, when it first connects; a test that changes it forgets its connections."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def no_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PREFDATA_ROOT", "s3://there-is-none/prefix")
    return ["no such bucket"]


def denied(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for method in ("GET", "PUT", "HEAD"):
        s3.fail(method, "", 403, "InvalidAccessKeyId", times=1000)
    return ["InvalidAccessKeyId, as asked", "Forbidden"]


def no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    return ["Unable to locate credentials"]


def nobody_there(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return ['Could not connect to the endpoint URL: "http://127.0.0.1:9']


COMMANDS: list[Callable[[], int]] = [
    lambda: cli.main(["versions"]),
    lambda: cli.main(["show", "v1"]),
    lambda: cli.main(["verify", "--all"]),
    lambda: cli.main(["sql", "from versions"]),
    lambda: cli.main(["tag"]),
    lambda: cli.main(["gc"]),
    lambda: ingest.deployable.main(["pairs.jsonl", "--model", "no/model"]),
    lambda: add_reference.deployable.main(["v1", "--model", "no/model"]),
    lambda: build_sapo_negatives.deployable.main(["v1", "--model", "no/model"]),
    lambda: trainer.main(["--data", "latest", "--loss", "orpo"]),
]


@pytest.mark.parametrize("trouble", [no_bucket, denied, no_credentials, nobody_there])
@pytest.mark.usefixtures("root", "fresh_connections")
def test_a_store_out_of_reach_is_one_sentence_before_any_model_is_looked_at(
    trouble: Callable[[S3Server, pytest.MonkeyPatch], list[str]],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    expected = trouble(s3, monkeypatch)
    for command in COMMANDS:
        status = command()
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), err
        assert len(err.strip().splitlines()) == 1
        assert any(words in err for words in expected), err
        assert "PREFDATA_ROOT" in err


# -- the commands --------------------------------------------------------------------------------------------------


def test_every_command_reads_and_tags_versions_of_an_object_store(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    published.publish(root, train=[published.pair([1, 2], [1, 3])])
    published.publish(root, train=[published.pair([1, 2], [1, 3]), published.pair([1, 2], [4, 3])])

    def said(*command: str, status: int = 0) -> str:
        assert cli.main(command) == status, command
        out, err = capsys.readouterr()
        assert err == ""
        return out

    assert [line.split()[0] for line in said("versions").splitlines()] == ["version", "v1", "v2"]
    assert f"{root}/v2" in said("show", "latest")
    assert said("verify", "--all").splitlines() == ["v1: sound", "v2: sound"]
    assert "lengths" in said("stats", "v1")
    assert "1 added, 0 removed" in said("diff", "v1", f"{root}/v2", status=1)
    assert said("lineage", "v2").startswith("v2")
    assert said("tag", "best", "v2") == "best: names v2\n"
    assert f"{root}/v2" in said("show", "best")
    assert said("tag", "--delete", "best") == "best: removed, it named v2\n"
    assert query.sql("select version, count(*) as n from pairs group by all order by all").to_pylist() == [
        {"version": "v1", "n": 1},
        {"version": "v2", "n": 2},
    ]
    assert len(query.sql("from lengths")) > 0


def test_gc_takes_stale_claims_and_leaves_versions(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    published.publish(root)
    storage = Storage(root)
    for number in (2, 3):
        claim = {"host": "gone", "pid": 1, "time": 0.0, "build_key": "k"}
        assert storage.create(f"v{number}/claim", json.dumps(claim).encode())
        storage.write(f"v{number}/train/part-00000.parquet", b"half")
    before = set(storage.at("v1").walk())
    assert cli.main(["gc"]) == 0
    assert "removed 0 bytes in all" in capsys.readouterr().out  # written a moment ago
    assert cli.main(["gc", "--older-than", "0"]) == 0
    assert set(storage.at("v1").walk()) == before
    assert sorted(storage.walk()) == sorted([*(f"v1/{name}" for name in before), "v3/claim"])  # its number stays taken


def test_gc_asks_a_store_for_each_folder_and_not_for_each_file(root: str, s3: S3Server) -> None:
    storage = Storage(root)
    for number in range(20):
        storage.write(f".work/units/ab/ab{number:062x}", b"unit")
    storage.write(".work/units/ab/mine", b"mine")
    found = gc.plan(storage, older_than_s=0, now=time.time() + 60, with_work=True)
    s3.requests.clear()
    assert [gc.remove(storage, leftover) for leftover in found.leftovers] == [20 * len(b"unit")]
    asked = Counter(method for method, _ in s3.requests)
    assert asked["DELETE"] == 20
    assert asked.total() <= 20 + 2
    assert list(storage.walk()) == [".work/units/ab/mine"]


@pytest.mark.parametrize("prefix", ["", "/", "/a b/ü", "/a[1]", "/what?", "/50%25"])
def test_any_prefix_holds_versions(prefix: str, s3: S3Server) -> None:
    root = s3.bucket() + prefix
    version = published.publish(root)
    assert verify(version) == []
    assert versions.find("latest", root=root).url == version.url == f"{root.rstrip('/')}/v1"
    assert query.sql("select count(*) as n from v1", root).to_pylist() == [{"n": 1}]


# -- a publisher that is cut off -----------------------------------------------------------------------------------


def test_a_manifest_that_is_written_after_its_publisher_was_interrupted_finds_all_its_files(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, late = Storage.create, []

    def interrupted(storage: Storage, name: str, data: bytes) -> bool:
        if name != versions.MANIFEST:
            return create(storage, name, data)
        late.append(lambda: create(storage, name, data))  # the request is on its way
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published.publish(root)
    assert versions.every(root) == []
    (arrive,) = late
    assert arrive()
    (version,) = versions.every(root)
    assert verify(version) == []


@pytest.mark.usefixtures("fresh_connections")
def test_a_store_that_fails_at_the_last_moment_costs_a_number_and_nothing_else(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    root = s3.bucket()
    s3.fail("PUT", "/manifest.json", 503, "ServiceUnavailable", times=1000)
    with pytest.raises(Unreachable, match=r"cannot write into s3://.*/v1 \(ServiceUnavailable, as asked"):
        published.publish(root)
    assert versions.every(root) == []
    s3.mend()
    assert published.publish(root).name == "v2"


def test_a_publisher_that_fails_before_leaves_its_claim_alone(root: str, s3: S3Server) -> None:
    s3.fail("PUT", "/README.md", 403, "AccessDenied", times=1000)
    with pytest.raises(UserError, match="AccessDenied"):
        published.publish(root)
    assert list(Storage(root).walk()) == ["v1/claim"]


HALF = """
import sys, time
from prefdata import versions
from tests import published
rows = published.rows_table("pairs", [published.pair([1, 2], [1, 3])])
with versions.Staging(sys.argv[1], rows.schema, "key") as staging:
    staging.add("train", rows)
    staging.flush()
    print("half", flush=True)
    time.sleep(600)
"""


def test_a_publisher_that_is_killed_leaves_what_gc_takes_and_nobody_sees(root: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HALF, root], cwd=ROOT, stdout=subprocess.PIPE) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == b"half\n"
        publisher.kill()
    assert sorted(Storage(root).walk()) == ["v1/claim", "v1/train/part-00000.parquet"]
    assert versions.every(root) == []
    assert published.publish(root).name == "v2"
    assert cli.main(["gc", "--older-than", "0"]) == 0
    assert Storage(root).folders() == ["v2"]
