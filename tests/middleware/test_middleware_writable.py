# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl check`` finds out about writing to the central repo, on SQLite and on PostgreSQL."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml
from centrals import ON_POSTGRES, ON_SQLITE, Central
from postgres import USER

from ppdaemon.config import ButlerConfig, NodeConfig, WorkersConfig
from ppdaemon.ctl.nodechecks import check_repo
from ppdaemon.middleware.export.mark import MARK
from ppdaemon.middleware.export.writable import findings

pytest_plugins = ("toyfixtures", "dbfixtures")


def found_in(central: Central) -> list[tuple[str, str]]:
    return [(each["level"], each["text"]) for each in findings(str(central.root))]


@contextmanager
def another_user(central: Central, *rights: str) -> Iterator[str]:
    """Make the repo connect as another user of the database, with these rights."""
    assert central.server is not None
    name = f"user{uuid.uuid4().hex}"
    central.server.run("postgres", f"CREATE ROLE {name} LOGIN")
    try:
        for right in rights:
            central.server.run(central.database, right.format(user=name))
        settings = central.root / "butler.yaml"
        settings.write_text(settings.read_text().replace(f"{USER}@", f"{name}@"))
        yield name
    finally:
        central.server.run(central.database, f"DROP OWNED BY {name}; DROP ROLE {name}")


READ = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}"
WRITE = (
    "GRANT INSERT ON ALL TABLES IN SCHEMA public TO {user}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {user}",
)
CREATE = "GRANT CREATE ON SCHEMA public TO {user}"


def test_a_repo_of_its_owner_can_be_written(central: Central) -> None:
    assert [level for level, _ in found_in(central)] == ["ok", "ok"]


@ON_POSTGRES
@pytest.mark.parametrize(
    ("rights", "levels", "text"),
    [
        ((READ,), ["ok", "error", "warning"], "may not insert into collection"),
        ((READ, WRITE[0]), ["ok", "error", "warning"], "may not insert into collection_seq"),
        ((READ, *WRITE), ["ok", "ok", "warning"], "may not create tables"),
        ((READ, *WRITE, CREATE), ["ok", "ok"], "can insert into all tables"),
    ],
)
def test_missing_rights_in_a_database_are_found(
    central: Central, rights: tuple[str, ...], levels: list[str], text: str
) -> None:
    with another_user(central, *rights):
        found = found_in(central)
    assert [level for level, _ in found] == levels, found
    assert any(text in each for _, each in found)


@ON_POSTGRES
def test_a_database_that_only_reads_is_found(central: Central) -> None:
    reading = "ALTER ROLE {user} SET default_transaction_read_only = on"
    with another_user(central, READ, *WRITE, CREATE, reading):
        assert [level for level, _ in found_in(central)] == ["ok", "error"]


@ON_POSTGRES
def test_a_database_that_does_not_exist_is_found(central: Central) -> None:
    settings = central.root / "butler.yaml"
    settings.write_text(settings.read_text().replace(central.database, "missing"))
    ((level, text),) = found_in(central)
    assert (level, '"missing" does not exist' in text) == ("error", True)


def test_ppctl_check_reports_what_is_found(central: Central) -> None:
    config = NodeConfig.model_construct(
        butler=ButlerConfig.model_construct(central=str(central.root)),
        workers=WorkersConfig.model_construct(environment={}),
    )
    assert [(found.item, found.level) for found in check_repo(config)] == [("central repo", "ok")] * 2
    missing = config.model_copy(update={"butler": ButlerConfig.model_construct(central="no-such-alias")})
    ((found,), (absent,)) = (check_repo(missing), check_repo(_absent(config)))
    assert (found.level, "cannot be opened" in found.text) == ("error", True)
    assert (absent.level, "does not exist" in absent.text) == ("error", True)


def _absent(config: NodeConfig) -> NodeConfig:
    return config.model_copy(update={"butler": ButlerConfig.model_construct(central="/no/such/repo")})


@ON_SQLITE
def test_a_datastore_that_cannot_be_written_is_found(central: Central) -> None:
    settings = central.root / "butler.yaml"
    document = yaml.safe_load(settings.read_text())
    document["datastore"]["root"] = "/proc"  # root may not make a file there either
    settings.write_text(yaml.safe_dump(document))
    found = found_in(central)
    assert [level for level, _ in found] == ["error", "error", "ok"]
    assert "/proc cannot be written" in found[0][1]


@ON_SQLITE
def test_a_missing_mark_is_found_before_the_night(central: Central) -> None:
    (central.root / MARK).unlink()
    levels, texts = zip(*found_in(central), strict=True)
    assert levels == ("ok", "error", "ok")
    assert "run 'ppctl export init' once" in texts[1]
    assert not (central.root / MARK).exists(), "nothing is written"


@ON_SQLITE
def test_constraints_of_the_datastore_are_found_before_the_night(central: Central) -> None:
    settings = central.root / "butler.yaml"
    document = yaml.safe_load(settings.read_text())
    document.setdefault("datastore", {})["constraints"] = {"reject": ["toy_image"]}
    settings.write_text(yaml.safe_dump(document))
    levels, texts = zip(*found_in(central), strict=True)
    assert levels == ("ok", "warning", "ok")
    assert texts[1].endswith("the datastore does not take all dataset types: {'reject': ['toy_image']}")
