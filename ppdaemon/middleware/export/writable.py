# SPDX-License-Identifier: BSD-3-Clause
"""Finds out whether outputs can be registered in a central repo, and writes none.

A program of its own, because ``ppctl check`` imports no LSST code: prints a JSON list of findings.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import sqlalchemy
from lsst.daf.butler import Butler, ButlerConfig

from ppdaemon.middleware.butler.central import recorded_engines
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.export.mark import mark_problem

__all__ = ("findings",)

type Finding = Mapping[str, str]
"""``level``, ``text`` and ``action`` of a finding."""

UNUSABLE = "no output can be exported"
GRANT = "GRANT INSERT ON ALL TABLES and USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {user}"
FORBIDDEN = sqlalchemy.text(
    "SELECT relname FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema)"
    # Only their owner changes the versions of the tables.
    " AND relname != 'butler_attributes' AND CASE relkind"
    " WHEN 'S' THEN NOT has_sequence_privilege(oid, 'USAGE')"
    " ELSE relkind IN ('r', 'p') AND NOT has_table_privilege(oid, 'INSERT') END ORDER BY relname"
)
"""Tables and sequences of a schema that the user of the connection may not use."""
SHOWN = 3
"""Names in a message; a Butler has some 60 tables."""


def findings(uri: str) -> Iterator[Finding]:
    """Yield whether files can be made in the datastores, and rows in the registry."""
    engines: set[sqlalchemy.Engine] = set()
    try:
        with recorded_engines(engines):
            butler = Butler.from_config(uri, writeable=False)  # another one inserts rows as it is opened
    except Exception as error:  # down, of another version, without its driver
        yield _error(f"{uri} cannot be opened: {describe(error)}")
        return
    with closing(butler):
        for root in butler.get_datastore_roots().values():
            if root is None or not root.isLocal:
                text = f"{root}: whether files can be written is seen at the first export"
                yield {"level": "skipped", "text": text, "action": ""}
            else:
                yield _folder(Path(root.ospath), "files can be written")
        try:
            if problem := mark_problem(butler):
                yield _error(problem)
        except sqlalchemy.exc.SQLAlchemyError as error:
            yield _error(f"{uri} cannot be read: {describe(error)}")
        config = ButlerConfig(uri)
        if constraints := config["datastore"].get("constraints"):
            text = f"{uri}: the datastore does not take all dataset types: {constraints.toDict()}"
            action = "outputs of export.types that it rejects are quarantined: compare the two"
            yield {"level": "warning", "text": text, "action": action}
        namespace = config["registry"].get("namespace")
        for engine in engines:
            try:
                with engine.connect() as db:
                    yield from _sqlite(db) if db.dialect.name == "sqlite" else _postgresql(db, namespace)
            except sqlalchemy.exc.SQLAlchemyError as error:
                yield _error(f"{engine.url}: {describe(error)}")


def _error(text: str, action: str = UNUSABLE) -> Finding:
    return {"level": "error", "text": text, "action": action}


def _folder(folder: Path, good: str) -> Finding:
    """Return whether a file can be made, without leaving one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return {"level": "ok", "text": f"{folder}: {good}", "action": ""}
    except OSError as error:
        return _error(f"{folder} cannot be written: {error.strerror}")


def _sqlite(db: sqlalchemy.Connection) -> Iterator[Finding]:
    """Yield whether the file and the folder of its companions can be written; takes no lock of it."""
    path = Path(db.exec_driver_sql("PRAGMA database_list").one().file)
    if os.access(path, os.W_OK):
        yield _folder(path.parent, f"{path.name} can be written")
    else:
        yield _error(f"{path} cannot be written")


def _postgresql(db: sqlalchemy.Connection, namespace: str | None) -> Iterator[Finding]:
    """Yield whether the user of the connection may insert rows in all tables of the registry."""
    user, schema, read_only, may_create = db.execute(
        sqlalchemy.text(
            "SELECT current_user, name, current_setting('transaction_read_only'),"
            " has_schema_privilege(name, 'CREATE')"
            " FROM (SELECT coalesce(:namespace, current_schema()) AS name) AS chosen"
        ),
        {"namespace": namespace},
    ).one()
    forbidden = list(db.scalars(FORBIDDEN, {"schema": schema}))
    where = f"{db.engine.url.database}, schema {schema}"
    if read_only == "on":
        action = "connect to the primary server; see default_transaction_read_only of this user"
        yield _error(f"{where}: the server only reads", action)
    elif forbidden:
        more = f" and {len(forbidden) - SHOWN} more" if len(forbidden) > SHOWN else ""
        text = f"{where}: user {user} may not insert into {', '.join(forbidden[:SHOWN])}{more}"
        yield _error(text, f"{UNUSABLE}: {GRANT.format(schema=schema, user=user)}")
    else:
        yield {"level": "ok", "text": f"{where}: user {user} can insert into all tables", "action": ""}
    if not may_create:
        text = f"{where}: user {user} may not create tables, for outputs with new dimensions"
        action = "register the dataset types of the pipelines once by the owner, or GRANT CREATE ON SCHEMA"
        yield {"level": "warning", "text": text, "action": action}


if __name__ == "__main__":
    json.dump(list(findings(sys.argv[1])), sys.stdout)
