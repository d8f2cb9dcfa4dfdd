"""psycopg 3, over libpq: one step a line, see ../program.py."""

import io
import threading

import psycopg

from steps import (
    ACTIVE, BY_SQL, KEPT, LINES, LOCAL, PATIENCE, SLOW, TEXT, TYPES, VALUES, Steps, equal, serve,
)


class Psycopg(Steps):
    def __init__(self, port, user):
        super().__init__(user)
        self.port = port
        self.client = self.open()
        self.other = self.open()
        self.set_up()

    def open(self):
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=self.user, dbname="postgres",
            sslmode="disable", application_name="python", options="-c statement_timeout=55s",
            autocommit=True, prepare_threshold=1,
        )

    def close(self):
        self.client.close()
        self.other.close()

    def execute(self, sql):
        self.client.execute(sql)

    def value(self, sql, *values, on=None):
        # Without values by the simple protocol, with them by the extended.
        (row,) = (on or self.client).execute(sql, values or None).fetchall()
        (value,) = row
        return value

    def code(self, error):
        return getattr(error, "sqlstate", None)

    def statements(self):
        kept = "SELECT %s::int + 1 AS n, %s::text AS t"
        for number in [1, 41]:
            rows = self.client.execute(kept, (number, f"ä{number}"), prepare=True).fetchall()
            equal(rows, [(number + 1, f"ä{number}")])
        equal(self.value("EXECUTE by_sql (21)"), 42)
        known = "SELECT count(*) FROM pg_prepared_statements WHERE statement = %s"
        equal(self.value(known, KEPT), 1)
        self.fresh += 1
        passing = f"SELECT {self.fresh} + %s::int"
        for number in [3, 4]:
            rows = self.client.execute(passing, (number,), prepare=True).fetchall()
            equal(rows, [(self.fresh + number,)])

    def types(self):
        for form in ["s", "t", "b"]:
            columns = ", ".join(f"%{form}::{name}" for name, _ in TYPES)
            for binary in [False, True]:
                cursor = self.client.cursor(binary=binary)
                equal(cursor.execute(f"SELECT {columns}", VALUES).fetchall(), [tuple(VALUES)])
        when = VALUES[8]
        equal(self.value("SELECT %s::timestamptz::text", when), LOCAL)

    def errors(self):
        self.refused("22012", self.execute, "SELECT 1 / 0")
        self.refused("22012", self.value, "SELECT 1 / %s::int", 0)
        self.fresh += 1
        self.refused("42601", self.value, f"SELEC {self.fresh} + %s", 1)
        with self.client.transaction():
            with self.refusing("25P02"), self.client.transaction():
                self.refused("22P02", self.value, "SELECT %s::text::int", "none")
                self.execute("SELECT 1")
            equal(self.value("SELECT 5"), 5)
        equal(self.value("SELECT %s::int", 6), 6)
        # After a ROLLBACK it has said DEALLOCATE ALL, where it knew of statements.
        if self.value("SELECT count(*) FROM pg_prepared_statements WHERE from_sql") == 0:
            self.execute(BY_SQL)

    def fill(self):
        self.execute("TRUNCATE copied")
        cursor = self.client.cursor()
        with cursor.copy("COPY copied FROM STDIN") as copy:
            for line in LINES:
                copy.write(line)
        equal(cursor.rowcount, 500)

    def copy_in(self):
        self.fill()
        equal(self.value("SELECT sum(id) FROM copied"), 125250)
        self.execute("TRUNCATE copied")
        with self.client.cursor().copy("COPY copied FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text"])
            for number in range(1, 101):
                copy.write_row((number, f"ä {number}"))
        equal(self.value("SELECT what FROM copied WHERE id = %s", 77), "ä 77")

    def copy_out(self):
        self.fill()
        found = io.BytesIO()
        with self.client.cursor().copy("COPY (SELECT * FROM copied ORDER BY id) TO STDOUT") as copy:
            for chunk in copy:
                found.write(chunk)
        equal(found.getvalue().decode(), TEXT)

    def failing_copy(self):
        self.execute("TRUNCATE copied")
        # The server does not take it.
        with self.refusing("22P02"):
            with self.client.cursor().copy("COPY copied FROM STDIN") as copy:
                copy.write("1\tgood\nno number\tbad\n")
        # The client gives up in the middle: a CopyFail.
        try:
            with self.client.cursor().copy("COPY copied FROM STDIN") as copy:
                copy.write("1\tgood\n")
                raise EOFError("enough")
        except EOFError:
            pass
        # The server fails in the middle.
        failing = "COPY (SELECT 100 / (300 - n) FROM generate_series(1, 400) n) TO STDOUT"
        with self.refusing("22012"):
            with self.client.cursor().copy(failing) as copy:
                for _ in copy:
                    pass
        equal(self.value("SELECT count(*) FROM copied"), 0)

    def cancel(self):
        def stop():
            self.wait_active(lambda: self.value(f"{ACTIVE} '{SLOW}'", on=self.other))
            self.client.cancel_safe(timeout=PATIENCE)

        stopper = threading.Thread(target=stop)
        stopper.start()
        self.refused("57014", self.execute, SLOW)
        stopper.join()
        # One that comes about when its statement ends meets that or nothing.
        stopper = threading.Thread(target=self.client.cancel_safe)
        stopper.start()
        try:
            self.execute("SELECT pg_sleep(0.002)")
        except psycopg.errors.QueryCanceled:
            pass
        stopper.join()
        equal(self.value("SELECT 8 FROM pg_sleep(0.002)"), 8)

    def cursor(self):
        with self.client.transaction():
            with self.client.cursor(name="server_side") as cursor:
                cursor.itersize = 25
                cursor.execute("SELECT n FROM generate_series(1, %s) n", (120,))
                equal([row[0] for row in cursor], list(range(1, 121)))
            # One that is left in the middle.
            left = self.client.cursor(name="left")
            left.execute("SELECT n FROM generate_series(1, 120) n")
            equal(left.fetchmany(3), [(1,), (2,), (3,)])
        equal(self.value("SELECT count(*) FROM pg_cursors WHERE name = %s", "left"), 0)

    def notifications(self):
        equal(self.value("SELECT pg_listening_channels()"), "news")
        first = self.sent
        for _ in range(5):
            self.other.execute("SELECT pg_notify('news', %s)", (str(self.sent),))
            self.sent += 1
            self.execute("SELECT 1")
        heard = []
        for notify in self.client.notifies(timeout=PATIENCE):
            equal(notify.channel, "news")
            heard.append(notify.payload)
            if self.all_heard(first, heard):
                return
        raise AssertionError(f"sent {first} to {self.sent - 1}, heard {heard}")

    def batch(self):
        # All on their way before the first answer.
        with self.client.pipeline():
            answers = [self.client.execute("SELECT %s::int", (n,)) for n in range(30)]
        equal([answer.fetchall() for answer in answers], [[(n,)] for n in range(30)])
        # What stands behind a failure, before its Sync, is left out.
        self.execute("TRUNCATE copied")
        with self.refusing("22012"), self.client.pipeline():
            before = self.client.execute("SELECT %s::int", (1,))
            self.client.execute("SELECT 1 / %s::int", (0,))
            self.client.execute("INSERT INTO copied VALUES (%s, 'left out')", (1,))
        equal(before.fetchall(), [(1,)])
        equal(self.value("SELECT count(*) FROM copied"), 0)
        many = self.client.execute("SELECT 1; SELECT 2, 3; SELECT 4 WHERE false")
        found = [many.fetchall()]
        while many.nextset():
            found.append(many.fetchall())
        equal(found, [[(1,)], [(2, 3)], []])


serve(Psycopg)
