"""A checkout that is moved, copied or another user's keeps its runs, and writes nothing where it came from."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.tracking.client import MlflowMissingError, connected
from tests.tracking.small_pipeline import artifacts, client, records, run_split, runs, warnings


@pytest.fixture
def checkout(project, tmp_path, monkeypatch):
    """A project with a blank in its path, in which a stage was logged."""
    path = tmp_path.with_name(f"{tmp_path.name} checkouts") / "first"
    path.parent.mkdir()
    shutil.move(project, path)
    monkeypatch.chdir(path)
    run_split(path)
    # mlflow puts the address that it was given into the environment of its process
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_all_artifacts_are_in(root, expected_runs):
    """Each run's artifacts are listed, fetched, and addressed below this checkout."""
    to, found = client(root), runs(root)
    assert [name for name, _ in found].count("split") == expected_runs
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    for _, run in found:
        assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri() + "/")
        for path in artifacts(to, run.info.run_id):
            assert Path(to.download_artifacts(run.info.run_id, path)).is_file()
    assert [len(list(artifacts(to, run.info.run_id))) for name, run in found if name == "split"] == [5] * expected_runs


def log_another_run(root, monkeypatch):
    monkeypatch.chdir(root)
    (root / "data/traces/a.txt").write_text("another")
    run_split(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not records(root)


def test_after_a_move_old_and_new_runs_have_their_artifacts_here(checkout, monkeypatch, caplog):
    moved = checkout.rename(checkout.with_name("second"))
    # as where the former place is in another user's home: nothing can be made there
    checkout.write_text("in the way")
    log_another_run(moved, monkeypatch)
    assert warnings(caplog) == [
        f"{moved / 'mlflow.db'} was moved or copied: its artifacts are now those in {moved / 'mlartifacts'}, not in "
        f"{(checkout / 'mlartifacts').as_uri()}"
    ]
    check_all_artifacts_are_in(moved, 2)
    run_split(moved)
    assert len(warnings(caplog)) == 1


def test_a_copy_writes_nothing_into_the_original(checkout, monkeypatch):
    copy = shutil.copytree(checkout, checkout.with_name("copy"), symlinks=True)
    before = contents(checkout)
    log_another_run(copy, monkeypatch)
    assert contents(checkout) == before
    check_all_artifacts_are_in(copy, 2)
    check_all_artifacts_are_in(checkout, 1)


def test_artifacts_come_home_before_mlflows_pages_are_opened(checkout, monkeypatch):
    moved = checkout.rename(checkout.with_name("second"))
    monkeypatch.chdir(moved)
    assert CliRunner().invoke(app, ["resend"]).exit_code == 0
    check_all_artifacts_are_in(moved, 1)


def test_addresses_that_are_not_ours_stay(checkout, monkeypatch):
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        for number, place in enumerate(("s3://bucket/mlartifacts", "file:///srv/mlartifacts/7")):
            database.execute(
                "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES (?, ?, 'active')",
                (f"other {number}", place),
            )
    moved = checkout.rename(checkout.with_name("second"))
    log_another_run(moved, monkeypatch)
    places = {found.name: found.artifact_location for found in client(moved).search_experiments()}
    assert places["other 0"] == "s3://bucket/mlartifacts"
    assert places["other 1"] == "file:///srv/mlartifacts/7"


def test_a_folder_of_artifacts_that_cannot_be_made_is_one_line(checkout, monkeypatch, caplog):
    shutil.rmtree(checkout / "mlartifacts")
    (checkout / "mlartifacts").write_text("in the way")
    with pytest.raises(MlflowMissingError, match=r"cannot use this database: .*/mlartifacts'; mend that, or "):
        connected(checkout).__enter__()
    (checkout / "data/traces/a.txt").write_text("another")
    run_split(checkout)
    (line,) = warnings(caplog)
    assert "mlartifacts'" in line
    assert len(records(checkout)) == 1


def test_a_relative_address_of_the_database_is_one_too(checkout, monkeypatch):
    moved = checkout.rename(checkout.with_name("second"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    log_another_run(moved, monkeypatch)
    check_all_artifacts_are_in(moved, 2)


def test_a_database_of_another_mlflow_is_one_whole_line(checkout, monkeypatch, caplog):
    old = checkout.rename(checkout.with_name("old"))
    monkeypatch.chdir(old)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    uri = f"sqlite:///{old / 'mlflow.db'}"
    words = rf"its schema 451aebb31d03 is of another MLflow release, .*mlflow db upgrade {uri} .*install that one\)"
    with pytest.raises(MlflowMissingError, match=words) as caught:
        connected(old).__enter__()
    assert "\n" not in str(caught.value)
    assert "make ui" not in str(caught.value)
    (old / "data/traces/a.txt").write_text("another")
    run_split(old)
    assert f"mlflow db upgrade {uri}" in warnings(caplog)[-1]
    assert warnings(caplog)[-1].endswith("to log it again: moe-beyond resend")
    records(old)[0].unlink()
    CliRunner().invoke(app, ["resend"])
    assert warnings(caplog)[-1].startswith(f"{uri}: its schema 451aebb31d03 is of another")
