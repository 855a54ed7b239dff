"""A local database is the file in the checkout, whatever the checkout is called."""

import pytest
import sqlalchemy

from moe_beyond.tracking.database import local_database, uri_of


@pytest.mark.parametrize("name", ["plain", "a b'c\";$(exit 1)&#[d]", "100%", "a%20b", "why?", "a?b%3Fc"])
def test_the_uri_of_a_database_names_that_file(tmp_path, name):
    database = tmp_path / name / "mlflow.db"
    database.parent.mkdir()
    engine = sqlalchemy.create_engine(uri_of(database))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (x INT)"))
    engine.dispose()
    assert database.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert local_database(uri_of(database)) == database
