"""Spark's SQL server (HiveServer2's protocol) over Firn's tables, for BI tools: JDBC, ODBC, PyHive, impyla and beeline."""

import ipaddress
import logging
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from pyspark.sql import SparkSession

from featurize.building.session import session_builder, stop_session
from featurize.errors import FirnError, UsageError
from featurize.progress import stage
from featurize.sql.passwords import require_passwords
from featurize.sql.query import spark_errors
from featurize.sql.shared_views import SharedViews
from featurize.sql.tables import SqlTable, SqlView

_LOOK_EVERY_S = 1.0
_LOOK_AT_LEAST_S = 60.0
_LOOK_SHARE = 10  # of the time, at most one part in so many is spent on looking for new versions, where it takes long
_NAME = re.compile("[a-z_][a-z0-9_]*")
_FOLDERS = ("exec.scratchdir", "exec.local.scratchdir", "downloaded.resources.dir", "querylog.location")
_OPERATION_LOGS = "server2.logging.operation.log.location"
# What they log are faults of clients, with stack traces: a wrong query or password, a connection that ended. Clients are told.
_QUIET = ("org.apache.thrift", "org.apache.hive.service", "org.apache.spark.sql.hive.thriftserver")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, and who may connect.

    Attributes:
        host: Name or address to listen on.
        port: TCP port; 0: any that is free.
        database: Name of the database of the views.
        metastore: URI of a Hive metastore (``thrift://host:9083``), or a folder for one; None: only this server knows the tables.
        passwords: The password of each name that may connect; None: everybody may.
    """

    host: str = "127.0.0.1"
    port: int = 10000
    database: str = "default"
    metastore: str | None = None
    passwords: Mapping[str, str] | None = None

    def check(self) -> None:
        """Checks the settings before Spark starts.

        Raises:
            UsageError: One is invalid, the port is in use, or the server would be open to other hosts without a password.
        """
        if _NAME.fullmatch(self.database) is None:
            raise UsageError(f"`database` (--database) must consist of a-z, 0-9 and _. Got {self.database!r}.")
        if not is_loopback(self.host) and self.passwords is None:
            raise UsageError(
                f"`host` (--host) {self.host} can be reached from other hosts: a password is required (--password-file)."
            )
        if self.metastore is not None and not self.metastore.startswith("thrift://"):
            folder = self.metastore.removeprefix("file://")
            if "://" in folder or ";" in folder:
                raise UsageError(
                    "`metastore` (--metastore) must be thrift://HOST:PORT or a local folder, whose name has no semicolon. "
                    f"Got {self.metastore!r}."
                )
        _check_port(self.host, self.port)


class SqlServer:
    """A server that runs.

    Attributes:
        port: Its TCP port.
        views: The views that it shows.
    """

    def __init__(self, server: Any, views: SharedViews) -> None:
        self.port = next(
            int(service.getPortNumber()) for service in server.getServices() if "Thrift" in service.getName()
        )
        self.views = views

    def follow(
        self,
        find: Callable[[], Sequence[SqlTable | SqlView]],
        is_over: Event,
        *,
        on_change: Callable[[list[str]], object],
    ) -> None:
        """Shows what `find` returns, looking about once a second, until `is_over` is set.

        Where tables cannot be read, the server goes on with those it has, and logs the reason once.

        Args:
            find: Returns the tables as they are published now.
            is_over: Ends it.
            on_change: Called with the names of the views that changed.
        """
        failure, pause = "", _LOOK_EVERY_S
        while not is_over.wait(pause):
            started = perf_counter()
            try:
                tables = find()
                pause = min(max(_LOOK_EVERY_S, _LOOK_SHARE * (perf_counter() - started)), _LOOK_AT_LEAST_S)
                changed = self.views.show(tables)
                failure = ""
            except (FirnError, OSError) as error:
                changed = []
                if str(error) != failure:
                    failure = str(error)
                    _log.warning("The tables are shown as they were, because they cannot be read: %s", failure)
            if changed:
                on_change(changed)


@contextmanager
def open_server(settings: ServerSettings, tables: Sequence[SqlTable | SqlView], *, slots: int) -> Iterator[SqlServer]:
    """A server that shows `tables` from its first connection on; it ends with the block.

    Args:
        settings: Where it listens, and who may connect.
        tables: The tables.
        slots: Number of tasks that run at the same time, where Spark runs on this machine.

    Raises:
        UsageError: The settings are invalid.
        JobError: A table or the metastore cannot be used, or the server cannot start.
    """
    settings.check()
    with tempfile.TemporaryDirectory(prefix="firn-serve-") as folder:
        session = _make_session(settings, Path(folder), slots)
        try:
            what = "the database" if settings.metastore is None else f"the metastore {settings.metastore}"
            with spark_errors(f"{what} cannot be used"):
                views = SharedViews(session, settings.database)
            views.show(tables)
            server = _start(session, settings)
            try:
                yield SqlServer(server, views)
            finally:
                server.stop()
        finally:
            stop_session(session)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`.

    Raises:
        UsageError: There is no such host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"`host` (--host) must be a name or an address of this machine. Got {host!r}: {error}."
        ) from error
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _make_session(settings: ServerSettings, folder: Path, slots: int) -> SparkSession:
    """A session that writes what it needs below `folder`, and nothing into the working directory."""
    builder = session_builder("firn serve", slots=slots, java_computes=True)
    for name in (*_FOLDERS, _OPERATION_LOGS):
        (folder / name).mkdir()
        builder = builder.config(f"spark.hadoop.hive.{name}", str(folder / name))
    builder = builder.config("spark.sql.warehouse.dir", (folder / "warehouse").as_uri())
    builder = builder.config("spark.hadoop.hive.server2.thrift.bind.host", settings.host)
    builder = builder.config("spark.hadoop.hive.server2.thrift.port", settings.port)
    if settings.metastore is not None:
        builder = builder.enableHiveSupport()
        if settings.metastore.startswith("thrift://"):
            builder = builder.config("spark.hadoop.hive.metastore.uris", settings.metastore)
        else:
            place = Path(settings.metastore.removeprefix("file://")).absolute()
            database = f"jdbc:derby:;databaseName={place / 'metastore'};create=true"
            builder = builder.config("spark.hadoop.javax.jdo.option.ConnectionURL", database)
            builder = builder.config("spark.sql.warehouse.dir", (place / "warehouse").as_uri())
    session = builder.getOrCreate()
    jvm: Any = session.sparkContext._jvm
    jvm.java.lang.System.setProperty("derby.stream.error.file", str(folder / "derby.log"))
    for name in _QUIET:
        jvm.org.apache.logging.log4j.core.config.Configurator.setLevel(name, jvm.org.apache.logging.log4j.Level.OFF)
    return session


def _start(session: SparkSession, settings: ServerSettings) -> Any:
    stage("starting the SQL server")
    jvm: Any = session.sparkContext._jvm
    if settings.passwords is not None:
        require_passwords(session.sparkContext, settings.passwords)
    with spark_errors("the server cannot start"):
        context = session._jsparkSession.sqlContext()
        return jvm.org.apache.spark.sql.hive.thriftserver.HiveThriftServer2.startWithContext(context)


def _check_port(host: str, port: int) -> None:
    """Checks that nobody listens on a port.

    Raises:
        UsageError: Somebody does, or it is not allowed.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with closing(socket.socket(family, kind)) as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind(address)
        except OSError as error:
            raise UsageError(f"`port` (--port) {port} of {host} cannot be used: {error.strerror}.") from error
