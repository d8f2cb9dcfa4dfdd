"""SQLAlchemy with a pool of three sessions of psycopg: one step a line, see ../program.py.

Each step runs on every session of the pool. COPY, cancel and notifications are psycopg's own.
"""

import os

import sqlalchemy
from sqlalchemy import Column, Integer, MetaData, Table, Text, event, func, select, text

from steps import BY_SQL, LOCAL, TYPES, VALUES, Steps, equal, serve

POOL = 3


class SqlAlchemy(Steps):
    def __init__(self, port, user):
        super().__init__(user)
        url = sqlalchemy.URL.create(
            "postgresql+psycopg", user, os.environ["PGPASSWORD"], "127.0.0.1", port, "postgres"
        )
        arguments = {
            "sslmode": "disable", "application_name": "python",
            "options": "-c statement_timeout=55s", "prepare_threshold": 1,
        }
        self.engine = sqlalchemy.create_engine(
            url, pool_size=POOL, max_overflow=0, connect_args=arguments
        )
        event.listen(self.engine, "connect", self.connected)
        self.table = Table(
            "orders", MetaData(), Column("id", Integer, primary_key=True), Column("what", Text)
        )
        self.table.create(self.engine, checkfirst=True)
        # The pool gives them out in turn from now on.
        for client in [self.engine.connect() for _ in range(POOL)]:
            client.close()
        self.client = None

    @staticmethod
    def connected(client, _record):
        client.autocommit = True
        for sql in [
            "SET TimeZone = 'Asia/Tokyo'",
            'SET search_path = "$user", pg_catalog',
            BY_SQL,
        ]:
            client.execute(sql)
        client.autocommit = False

    def close(self):
        self.engine.dispose()

    def on_each(self, step):
        """One transaction on each session of the pool."""
        seen = set()
        for _ in range(POOL):
            with self.engine.begin() as self.client:
                seen.add(id(self.client.connection.driver_connection))
                step()
        equal(len(seen), POOL)

    def value(self, sql, **values):
        return self.client.execute(text(sql), values).scalar_one()

    def code(self, error):
        return getattr(getattr(error, "orig", None), "sqlstate", None)

    def settings(self):
        self.on_each(super().settings)

    def statements(self):
        self.on_each(self.prepared)

    def prepared(self):
        equal(self.value("EXECUTE by_sql (21)"), 42)
        for number in range(3):
            equal(self.value("SELECT CAST(:n AS int) + 1", n=number), number + 1)
        known = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql AND statement = :s"
        equal(self.value(known, s="SELECT CAST($1 AS int) + 1"), 1)

    def types(self):
        columns = ", ".join(f"CAST(:v{at} AS {name})" for at, (name, _) in enumerate(TYPES))
        values = {f"v{at}": value for at, value in enumerate(VALUES)}

        def step():
            equal(self.client.execute(text(f"SELECT {columns}"), values).all(), [tuple(VALUES)])
            equal(self.value("SELECT CAST(CAST(:v AS timestamptz) AS text)", v=VALUES[8]), LOCAL)

        self.on_each(step)

    def errors(self):
        def step():
            with self.refusing("23505"), self.client.begin_nested():
                self.client.execute(self.table.insert(), [{"id": -1, "what": "a"}])
                self.client.execute(self.table.insert(), [{"id": -1, "what": "b"}])
            with self.refusing("25P02"), self.client.begin_nested():
                with self.refusing("22012"):
                    self.value("SELECT 1 / CAST(:v AS int)", v=0)
                self.value("SELECT 1")
            equal(self.value("SELECT 5"), 5)
            # After a ROLLBACK psycopg has said DEALLOCATE ALL, where it knew of statements.
            if self.value("SELECT count(*) FROM pg_prepared_statements WHERE from_sql") == 0:
                self.client.exec_driver_sql(BY_SQL)

        self.on_each(step)

    def cursor(self):
        def step():
            series = select(func.generate_series(1, 120))
            rows = self.client.execution_options(yield_per=25).execute(series).scalars()
            equal(list(rows), list(range(1, 121)))

        self.on_each(step)

    def batch(self):
        def step():
            self.client.execute(self.table.delete())
            rows = [{"what": str(number)} for number in range(100)]
            made = self.client.execute(self.table.insert().returning(self.table.c.what), rows)
            equal(sorted(made.scalars(), key=int), [row["what"] for row in rows])
            update = self.table.update().where(self.table.c.what == sqlalchemy.bindparam("old"))
            changes = [{"old": str(number), "what": f"ä {number}"} for number in range(20)]
            self.client.execute(update, changes)
            found = self.client.execute(select(self.table.c.what)).scalars()
            expected = [change["what"] for change in changes] + [str(n) for n in range(20, 100)]
            equal(sorted(found), sorted(expected))

        self.on_each(step)


serve(SqlAlchemy)
