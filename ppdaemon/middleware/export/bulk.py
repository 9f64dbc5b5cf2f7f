# SPDX-License-Identifier: BSD-3-Clause
"""Inserts many rows of a table by one call of the database's driver.

SQLAlchemy makes the parameters of each row from a dictionary, which takes longer than SQLite to insert it;
and PostgreSQL has to parse each value as a part of the statement. Here SQLite's driver gets tuples, and
PostgreSQL one array for each column.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any

import sqlalchemy

__all__ = ("DIALECTS", "KnownIds", "Value", "converter", "insert_rows", "uuid_converter")

DIALECTS = {"sqlite": "qmark", "postgresql": "pyformat"}
"""How their drivers mark parameters (PEP 249): SQLite's own one; psycopg2, and psycopg 3."""

type Value = str | int | None


def converter(column: sqlalchemy.Column[Any], dialect: sqlalchemy.Dialect) -> Callable[[object], Value]:
    """Return what converts a column's value to that which the driver gets, such as the digits of a UUID."""
    convert: Callable[[Any], Any] | None = column.type.dialect_impl(dialect).bind_processor(dialect)
    return convert or (lambda value: value)


def uuid_converter(
    column: sqlalchemy.Column[Any], dialect: sqlalchemy.Dialect
) -> Callable[[uuid.UUID], Value]:
    """Return a `converter` of UUIDs, ten times as fast as that of the column if it gives a usual text."""
    convert, sample = converter(column, dialect), uuid.uuid4()
    usual: tuple[Callable[[uuid.UUID], str], ...] = attrgetter("hex"), str
    return next((each for each in usual if each(sample) == convert(sample)), convert)


class KnownIds:
    """Query for those of some UUIDs that a column has. All are one parameter: one for each takes longer than
    to look it up; and to make the query takes longer than to run it.
    """

    def __init__(self, column: sqlalchemy.Column[uuid.UUID], dialect: sqlalchemy.Dialect):
        ids = sqlalchemy.bindparam("ids", type_=sqlalchemy.Text)
        self._text: Callable[[Sequence[Value]], str]
        self.query = sqlalchemy.select(column)
        if dialect.name == "sqlite":
            self._text = json.dumps
            given = sqlalchemy.func.json_each(ids).table_valued("value")
            self.query = self.query.where(column.in_(sqlalchemy.select(given.c.value)))
        else:
            self._text = _array
            array = sqlalchemy.cast(ids, sqlalchemy.ARRAY(column.type))
            self.query = self.query.where(column == sqlalchemy.any_(array))

    def parameters(self, ids: Sequence[Value]) -> dict[str, str]:
        """Return the parameters of the query for UUIDs as the driver gets them."""
        return {"ids": self._text(ids)}


def insert_rows(
    connection: sqlalchemy.Connection,
    table: sqlalchemy.Table,
    columns: Mapping[str, Sequence[Value]],
    constants: Mapping[str, Value],
) -> None:
    """Insert rows, whose values are given by the name of the column, those of `constants` once for all rows.

    Values are those that the driver gets; see `converter`. Raises `sqlalchemy.exc.DBAPIError`.
    """
    prepare = connection.dialect.identifier_preparer
    filled = [table.columns[name] for name in (*constants, *columns)]
    names = ", ".join(map(prepare.format_column, filled))
    insert = f"INSERT INTO {prepare.format_table(table)} ({names})"
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" for _ in filled)
        rows = list(zip(*map(repeat, constants.values()), *columns.values(), strict=False))
        connection.exec_driver_sql(f"{insert} VALUES ({marks})", rows)
    else:
        types = [_type_name(column, connection.dialect) for column in filled]
        same = "".join(f"CAST(%s AS {name}), " for name in types[: len(constants)])
        arrays = ", ".join(f"CAST(%s AS {name}[])" for name in types[len(constants) :])
        values = (*constants.values(), *map(_array, columns.values()))
        connection.exec_driver_sql(f"{insert} SELECT {same}given.* FROM unnest({arrays}) AS given", values)


def _type_name(column: sqlalchemy.Column[Any], dialect: sqlalchemy.Dialect) -> str:
    """Return the name of a type in PostgreSQL: of texts without their length, to which a cast would cut them
    without an error.
    """
    return "text" if isinstance(column.type, sqlalchemy.String) else column.type.compile(dialect=dialect)


def _array(values: Sequence[Value]) -> str:
    """Return the text form of an array in PostgreSQL."""
    if set(map(type, values)) == {str}:
        text = '","'.join(map(str, values))
        # Few columns have a text that must be escaped; the others are done at once.
        if "\\" not in text and text.count('"') == 2 * (len(values) - 1):
            return f'{{"{text}"}}'
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: Value) -> str:
    match value:
        case None:
            return "NULL"
        case int():
            return str(value)
        case _:
            return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'
