"""The engine of `operations.sqlite`, which waits for room where the disk is full.

DBOS blocks a workflow and tries again, for as long as it takes, where the database says that its
connection is lost; with any other error the workflow ends in the middle. A full disk is said to be
such a loss (SQLAlchemy's `handle_error`), so that no operation is left half undone by it.
"""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

from holdfast.host.reserve import SpaceReserve


def step_engine(path: Path, reserve: SpaceReserve | None) -> Engine:
    """An engine for DBOS (`system_database_engine`), on the file `path`."""
    path.touch(mode=0o600, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", _configure)

    @event.listens_for(engine, "handle_error")
    def _full(context: ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            context.is_disconnect = True
            if reserve is not None:
                reserve.give_up()

    return engine


def _configure(connection: Any, _: Any) -> None:
    """As DBOS configures the engines that it makes itself: writers take turns instead of failing."""
    connection.isolation_level = "IMMEDIATE"
    for pragma in ("busy_timeout=30000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
