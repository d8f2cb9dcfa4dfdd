"""pg8000, the protocol in Python: one step a line, see ../program.py.

It has no cancel, no portals of some rows at a time and no CopyFail. Its COPY comes by the
extended protocol, which the other drivers' does not.
"""

import io
import os
import time

import pg8000.native

from steps import KEPT, LOCAL, PATIENCE, TEXT, TYPES, VALUES, Steps, equal, serve


class Pg8000(Steps):
    def __init__(self, port, user):
        super().__init__(user)
        self.port = port
        self.client = self.open()
        self.other = self.open()
        self.set_up()
        self.kept = self.client.prepare(KEPT)

    def open(self):
        return pg8000.native.Connection(
            self.user, host="127.0.0.1", port=self.port, database="postgres", ssl_context=False,
            password=os.environ["PGPASSWORD"], application_name="python",
            startup_params={"options": "-c statement_timeout=55s"},
        )

    def close(self):
        self.client.close()
        self.other.close()

    def execute(self, sql):
        self.client.run(sql)

    def value(self, sql, **values):
        # Without values by the simple protocol, with them by the extended.
        ((value,),) = self.client.run(sql, **values)
        return value

    def code(self, error):
        if isinstance(error, pg8000.native.DatabaseError):
            return error.args[0]["C"]
        return None

    def statements(self):
        for number in [1, 41]:
            rows = self.kept.run(n=number, t=f"ä{number}")
            equal(rows, [[number + 1, f"ä{number}"]])
        equal(self.value("EXECUTE by_sql (21)"), 42)
        known = "SELECT count(*) FROM pg_prepared_statements WHERE statement = :text"
        equal(self.value(known, text=KEPT), 1)
        self.fresh += 1
        passing = self.client.prepare(f"SELECT {self.fresh} + :n::int")
        for number in [3, 4]:
            equal(passing.run(n=number), [[self.fresh + number]])
        passing.close()

    def types(self):
        columns = ", ".join(f"CAST(:v{at} AS {name})" for at, (name, _) in enumerate(TYPES))
        values = {f"v{at}": value for at, value in enumerate(VALUES)}
        prepared = self.client.prepare(f"SELECT {columns}")
        for _ in range(2):
            equal(self.client.run(f"SELECT {columns}", **values), [VALUES])
            equal(prepared.run(**values), [VALUES])
        prepared.close()
        equal(self.value("SELECT CAST(CAST(:v AS timestamptz) AS text)", v=VALUES[8]), LOCAL)

    def errors(self):
        self.refused("22012", self.execute, "SELECT 1 / 0")
        with self.refusing("22012"):
            self.value("SELECT 1 / CAST(:v AS int)", v=0)
        self.refused("42601", self.client.prepare, "SELEC :v")
        self.execute("BEGIN")
        self.execute("SAVEPOINT before")
        with self.refusing("22P02"):
            self.value("SELECT CAST(CAST(:v AS text) AS int)", v="none")
        self.refused("25P02", self.execute, "SELECT 1")
        self.execute("ROLLBACK TO before")
        equal(self.value("SELECT 5"), 5)
        self.execute("COMMIT")
        equal(self.value("SELECT CAST(:v AS int)", v=6), 6)

    def fill(self):
        self.execute("TRUNCATE copied")
        self.client.run("COPY copied FROM STDIN", stream=io.StringIO(TEXT))
        equal(self.client.row_count, 500)

    def copy_in(self):
        self.fill()
        equal(self.value("SELECT sum(id) FROM copied"), 125250)
        equal(self.value("SELECT what FROM copied WHERE id = :v", v=77), "ä 77")

    def copy_out(self):
        self.fill()
        found = io.StringIO()
        self.client.run("COPY (SELECT * FROM copied ORDER BY id) TO STDOUT", stream=found)
        equal(found.getvalue(), TEXT)

    def failing_copy(self):
        self.execute("TRUNCATE copied")
        # The server does not take it.
        with self.refusing("22P02"):
            wrong = io.StringIO("1\tgood\nno number\tbad\n")
            self.client.run("COPY copied FROM STDIN", stream=wrong)
        # The server fails in the middle.
        with self.refusing("22012"):
            failing = "COPY (SELECT 100 / (300 - n) FROM generate_series(1, 400) n) TO STDOUT"
            self.client.run(failing, stream=io.StringIO())
        equal(self.value("SELECT count(*) FROM copied"), 0)

    def cursor(self):
        self.execute("BEGIN")
        self.execute("DECLARE declared CURSOR FOR SELECT n FROM generate_series(1, 120) n")
        for first in [1, 61]:
            equal(self.client.run("FETCH 60 FROM declared"), [[n] for n in range(first, first + 60)])
        self.execute("COMMIT")
        equal(self.value("SELECT count(*) FROM pg_cursors WHERE name = :v", v="declared"), 0)

    def notifications(self):
        equal(self.value("SELECT pg_listening_channels()"), "news")
        first = self.sent
        for _ in range(5):
            self.other.run("SELECT CAST(pg_notify('news', :v) AS text)", v=str(self.sent))
            self.sent += 1
        # It takes them with answers only.
        deadline = time.monotonic() + PATIENCE
        heard = []
        while not self.all_heard(first, heard):
            if time.monotonic() > deadline:
                raise AssertionError(f"sent {first} to {self.sent - 1}, heard {heard}")
            self.execute("SELECT 1")
            while self.client.notifications:
                _, channel, payload = self.client.notifications.popleft()
                equal(channel, "news")
                heard.append(payload)

    def batch(self):
        many = self.client.run("SELECT 1; SELECT 2; SELECT 4 WHERE false; SELECT 3")
        equal(many, [[1], [2], [3]])
        with self.refusing("22012"):
            self.client.run("SELECT 1; SELECT 1 / 0; SELECT 3")
        equal(self.value("SELECT 5"), 5)


serve(Pg8000)
