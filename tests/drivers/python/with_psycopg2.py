"""psycopg2, over libpq, by the simple protocol alone: one step a line, see ../program.py."""

import io
import select
import threading
import time

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras

from steps import ACTIVE, LOCAL, PATIENCE, SLOW, TEXT, TYPES, VALUES, Steps, equal, serve


class GivenUp:
    """A file that cannot be read to its end."""

    def read(self, _):
        raise EOFError("enough")


class Psycopg2(Steps):
    def __init__(self, port, user):
        super().__init__(user)
        self.port = port
        self.client = self.open()
        self.other = self.open()
        psycopg2.extras.register_uuid()
        self.set_up()

    def open(self):
        client = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=self.user, dbname="postgres",
            sslmode="disable", application_name="python", options="-c statement_timeout=55s",
        )
        client.autocommit = True
        return client

    def close(self):
        self.client.close()
        self.other.close()

    def execute(self, sql):
        self.client.cursor().execute(sql)

    def rows(self, sql, *values, on=None):
        cursor = (on or self.client).cursor()
        cursor.execute(sql, values or None)
        return cursor.fetchall()

    def value(self, sql, *values, on=None):
        ((value,),) = self.rows(sql, *values, on=on)
        return value

    def code(self, error):
        return getattr(error, "pgcode", None)

    def statements(self):
        self.fresh += 1
        self.execute(f"PREPARE fresh AS SELECT {self.fresh} + $1::int")
        for number in [3, 4]:
            equal(self.value("EXECUTE by_sql (%s)", number), 2 * number)
            equal(self.value("EXECUTE fresh (%s)", number), self.fresh + number)
        self.execute("DEALLOCATE fresh")
        equal(self.value("SELECT count(*) FROM pg_prepared_statements"), 1)

    def types(self):
        columns = ", ".join(f"%s::{name}" for name, _ in TYPES)
        (found,) = self.rows(f"SELECT {columns}", *VALUES)
        equal([bytes(v) if isinstance(v, memoryview) else v for v in found], VALUES)
        equal(self.value("SELECT %s::timestamptz::text", VALUES[8]), LOCAL)

    def errors(self):
        self.refused("22012", self.execute, "SELECT 1 / 0")
        self.refused("42601", self.execute, "SELEC 1")
        self.client.autocommit = False
        self.execute("SAVEPOINT before")
        self.refused("22P02", self.value, "SELECT %s::int", "none")
        self.refused("25P02", self.execute, "SELECT 1")
        self.execute("ROLLBACK TO before")
        equal(self.value("SELECT 5"), 5)
        self.client.commit()
        self.client.autocommit = True
        equal(self.value("SELECT %s", 6), 6)

    def fill(self):
        self.execute("TRUNCATE copied")
        cursor = self.client.cursor()
        cursor.copy_expert("COPY copied FROM STDIN", io.StringIO(TEXT), size=700)
        equal(cursor.rowcount, 500)

    def copy_in(self):
        self.fill()
        equal(self.value("SELECT sum(id) FROM copied"), 125250)
        equal(self.value("SELECT what FROM copied WHERE id = %s", 77), "ä 77")

    def copy_out(self):
        self.fill()
        found = io.StringIO()
        self.client.cursor().copy_expert("COPY (SELECT * FROM copied ORDER BY id) TO STDOUT", found)
        equal(found.getvalue(), TEXT)

    def failing_copy(self):
        self.execute("TRUNCATE copied")
        copy = self.client.cursor().copy_expert
        # The server does not take it.
        self.refused("22P02", copy, "COPY copied FROM STDIN", io.StringIO("1\tgood\nno number\tbad\n"))
        # The client gives up in the middle: a CopyFail.
        self.refused("57014", copy, "COPY copied FROM STDIN", GivenUp())
        # The server fails in the middle.
        failing = "COPY (SELECT 100 / (300 - n) FROM generate_series(1, 400) n) TO STDOUT"
        self.refused("22012", copy, failing, io.StringIO())
        equal(self.value("SELECT count(*) FROM copied"), 0)

    def cancel(self):
        def stop():
            self.wait_active(lambda: self.value(f"{ACTIVE} '{SLOW}'", on=self.other))
            self.client.cancel()

        stopper = threading.Thread(target=stop)
        stopper.start()
        self.refused("57014", self.execute, SLOW)
        stopper.join()
        # One that comes about when its statement ends meets that or nothing.
        stopper = threading.Thread(target=self.client.cancel)
        stopper.start()
        try:
            self.execute("SELECT pg_sleep(0.002)")
        except psycopg2.errors.QueryCanceled:
            pass
        stopper.join()
        equal(self.value("SELECT 8 FROM pg_sleep(0.002)"), 8)

    def cursor(self):
        self.client.autocommit = False
        cursor = self.client.cursor("server_side")
        cursor.itersize = 25
        cursor.execute("SELECT n FROM generate_series(1, %s) n", (120,))
        equal([row[0] for row in cursor], list(range(1, 121)))
        cursor.close()
        # One that is left in the middle.
        left = self.client.cursor("left")
        left.execute("SELECT n FROM generate_series(1, 120) n")
        equal(left.fetchmany(3), [(1,), (2,), (3,)])
        self.client.commit()
        self.client.autocommit = True
        equal(self.value("SELECT count(*) FROM pg_cursors WHERE name = %s", "left"), 0)

    def notifications(self):
        equal(self.value("SELECT pg_listening_channels()"), "news")
        first = self.sent
        for _ in range(5):
            self.value("SELECT pg_notify('news', %s)::text", str(self.sent), on=self.other)
            self.sent += 1
        deadline = time.monotonic() + PATIENCE
        heard = []
        while not self.all_heard(first, heard):
            left = deadline - time.monotonic()
            if left < 0:
                raise AssertionError(f"sent {first} to {self.sent - 1}, heard {heard}")
            select.select([self.client], [], [], left)
            self.client.poll()
            heard.extend(notify.payload for notify in self.client.notifies)
            self.client.notifies.clear()

    def batch(self):
        self.execute("TRUNCATE copied")
        rows = [(number, f"ä {number}") for number in range(1, 101)]
        with self.client.cursor() as cursor:
            insert = "INSERT INTO copied VALUES (%s, %s)"
            psycopg2.extras.execute_batch(cursor, insert, rows, page_size=30)
            equal(self.rows("SELECT id, what FROM copied ORDER BY id"), rows)
            # Many statements in one string are one transaction: one fails, nothing is done.
            delete = "DELETE FROM copied WHERE id = 10 / %s"
            wrong = [(1,), (2,), (0,), (5,)]
            self.refused("22012", psycopg2.extras.execute_batch, cursor, delete, wrong)
        equal(self.value("SELECT count(*) FROM copied"), 100)


serve(Psycopg2)
