# SPDX-License-Identifier: BSD-3-Clause
"""Rows that the driver gets at once are those that SQLAlchemy inserts one by one."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from lsst.daf.butler import ddl
from postgres import PostgresServer

from ppdaemon.middleware.export.bulk import KnownIds, converter, insert_rows, uuid_converter

pytest_plugins = ("dbfixtures",)

TEXTS = ("plain", "", "NULL", None, 'a "quoted" one', "it's", "{a,b}", "back\\slash", "100 %s %%", "ñ\n天")
LENGTH = 20


@pytest.fixture
def table() -> sqlalchemy.Table:
    """Return a table with names that must be quoted."""
    return sqlalchemy.Table(
        "of 100%",
        sqlalchemy.MetaData(),
        sqlalchemy.Column("id", ddl.GUID, primary_key=True),
        sqlalchemy.Column("group", sqlalchemy.String(LENGTH)),
        sqlalchemy.Column("fixed", sqlalchemy.CHAR(LENGTH)),
        sqlalchemy.Column("number%", sqlalchemy.BigInteger, nullable=False),
        sqlalchemy.Column("date", sqlalchemy.BigInteger),
    )


@pytest.fixture
def engine(
    server: PostgresServer | None, tmp_path: Path, table: sqlalchemy.Table
) -> Iterator[sqlalchemy.Engine]:
    """Yield a database that has the table."""
    url = f"sqlite:///{tmp_path / 'db'}" if server is None else server.url(server.create())
    engine = sqlalchemy.create_engine(url)
    table.create(engine)
    yield engine
    engine.dispose()


def test_rows_are_those_of_single_inserts(engine: sqlalchemy.Engine, table: sqlalchemy.Table) -> None:
    ids, filled = [uuid.uuid4() for _ in TEXTS], [text or "" for text in TEXTS]
    numbers = [number << 40 for number in range(len(TEXTS))]
    with engine.connect() as connection, connection.begin() as transaction:
        for id_, text, fixed, number in zip(ids, TEXTS, filled, numbers, strict=True):
            row = {"id": id_, "group": text, "fixed": fixed, "number%": number, "date": 7}
            connection.execute(table.insert(), row)
        expected = connection.execute(sqlalchemy.select(table)).all()
        transaction.rollback()
    with engine.begin() as connection:
        digits = list(map(converter(table.columns.id, connection.dialect), ids))
        columns = {"number%": numbers, "fixed": filled, "id": digits, "group": TEXTS}
        insert_rows(connection, table, columns, {"date": 7})
        assert connection.execute(sqlalchemy.select(table)).all() == expected


def test_those_that_the_table_has_are_found(engine: sqlalchemy.Engine, table: sqlalchemy.Table) -> None:
    ids = [uuid.uuid4() for _ in range(4)]
    convert = uuid_converter(table.columns.id, engine.dialect)
    known = KnownIds(table.columns.id, engine.dialect)
    with engine.connect() as connection:
        connection.execute(table.insert(), [{"id": id_, "number%": 1} for id_ in ids[::2]])
        for some in (ids, ids[1::2], ids[:1], []):
            found = connection.scalars(known.query, known.parameters(list(map(convert, some))))
            assert set(found) == set(ids[::2]).intersection(some)


def test_ids_are_converted_as_the_column_does_it(engine: sqlalchemy.Engine, table: sqlalchemy.Table) -> None:
    id_ = uuid.uuid4()
    for column in (table.columns.id, sqlalchemy.Column("other", _Reversed)):
        expected = converter(column, engine.dialect)(id_)
        assert uuid_converter(column, engine.dialect)(id_) == expected


class _Reversed(sqlalchemy.TypeDecorator[uuid.UUID]):
    """A column with another text."""

    impl = sqlalchemy.String
    cache_ok = True

    def process_bind_param(self, value: uuid.UUID | None, dialect: sqlalchemy.Dialect) -> str:
        return str(value)[::-1]


def test_errors_are_those_of_single_inserts(engine: sqlalchemy.Engine, table: sqlalchemy.Table) -> None:
    """A text that is too long is never cut, although a cast in PostgreSQL would do it."""
    digits = str(uuid.uuid4())
    with engine.connect() as connection:
        with pytest.raises(sqlalchemy.exc.IntegrityError), connection.begin():
            insert_rows(connection, table, {"id": [digits, digits]}, {"number%": 1})
        with pytest.raises(sqlalchemy.exc.IntegrityError), connection.begin():
            insert_rows(connection, table, {"id": [digits]}, {"number%": None})
        if engine.dialect.name == "postgresql":  # SQLite has no lengths
            for name in ("group", "fixed"):
                for columns, constants in (({name: ["x" * 21]}, {}), ({}, {name: "x" * 21})):
                    with pytest.raises(sqlalchemy.exc.DataError), connection.begin():
                        insert_rows(connection, table, {"id": [digits]} | columns, {"number%": 1} | constants)
        assert connection.execute(sqlalchemy.select(table)).all() == []
