"""asyncpg, in binary and always prepared: one step a line, see ../program.py."""

import asyncio
import io

import asyncpg

from steps import ACTIVE, KEPT, LINES, LOCAL, PATIENCE, SLOW, TEXT, TYPES, VALUES, Steps, equal, serve


class Asyncpg(Steps):
    def __init__(self, port, user):
        super().__init__(user)
        self.port = port
        self.runner = asyncio.Runner()
        self.client = self.run(self.open())
        self.other = self.run(self.open())
        self.heard = []
        self.news = asyncio.Event()
        self.run(self.client.add_listener("news", self.hear))
        self.set_up()
        self.kept = self.run(self.client.prepare(KEPT))

    def run(self, what):
        return self.runner.run(what)

    def open(self):
        return asyncpg.connect(
            host="127.0.0.1", port=self.port, user=self.user, database="postgres", ssl=False,
            server_settings={"application_name": "python", "statement_timeout": "55s"},
        )

    def close(self):
        self.run(self.client.close())
        self.run(self.other.close())
        self.runner.close()

    def hear(self, _connection, _pid, channel, payload):
        self.heard.append((channel, payload))
        self.news.set()

    def execute(self, sql):
        self.run(self.client.execute(sql))

    def value(self, sql, *values):
        (row,) = self.run(self.client.fetch(sql, *values))
        (value,) = row
        return value

    def code(self, error):
        return getattr(error, "sqlstate", None)

    def statements(self):
        for number in [1, 41]:
            rows = self.run(self.kept.fetch(number, f"ä{number}"))
            equal([tuple(row) for row in rows], [(number + 1, f"ä{number}")])
        equal(self.value("EXECUTE by_sql (21)"), 42)
        known = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $1"
        equal(self.value(known, KEPT), 1)
        self.fresh += 1
        passing = self.run(self.client.prepare(f"SELECT {self.fresh} + $1::int"))
        for number in [3, 4]:
            equal(self.run(passing.fetchval(number)), self.fresh + number)

    def types(self):
        columns = ", ".join(f"${at}::{name}" for at, (name, _) in enumerate(TYPES, start=1))
        for _ in range(2):
            (row,) = self.run(self.client.fetch(f"SELECT {columns}", *VALUES))
            equal(list(row), VALUES)
        equal(self.value("SELECT $1::timestamptz::text", VALUES[8]), LOCAL)

    def errors(self):
        self.refused("22012", self.execute, "SELECT 1 / 0")
        self.refused("22012", self.value, "SELECT 1 / $1::int", 0)
        self.fresh += 1
        self.refused("42601", self.value, f"SELEC {self.fresh} + $1", 1)
        self.run(self.in_transaction())
        equal(self.value("SELECT $1::int", 6), 6)

    async def in_transaction(self):
        async with self.client.transaction():
            try:
                async with self.client.transaction():
                    try:
                        await self.client.fetchval("SELECT $1::text::int", "none")
                    except asyncpg.InvalidTextRepresentationError:
                        await self.client.execute("SELECT 1")
                raise AssertionError("no error in a failed transaction")
            except asyncpg.InFailedSQLTransactionError:
                pass
            equal(await self.client.fetchval("SELECT 5"), 5)

    def fill(self):
        self.execute("TRUNCATE copied")
        done = self.client.copy_to_table("copied", source=io.BytesIO(TEXT.encode()))
        equal(self.run(done), "COPY 500")

    def copy_in(self):
        self.fill()
        equal(self.value("SELECT sum(id) FROM copied"), 125250)
        # In binary.
        self.execute("TRUNCATE copied")
        rows = [(number, f"ä {number}") for number in range(1, 101)]
        done = self.client.copy_records_to_table("copied", records=rows)
        equal(self.run(done), "COPY 100")
        equal(self.value("SELECT what FROM copied WHERE id = $1", 77), "ä 77")

    def copy_out(self):
        self.fill()
        found = io.BytesIO()
        sql = "SELECT * FROM copied ORDER BY id"
        equal(self.run(self.client.copy_from_query(sql, output=found)), "COPY 500")
        equal(found.getvalue().decode(), TEXT)

    def failing_copy(self):
        self.execute("TRUNCATE copied")
        # The server does not take it.
        wrong = io.BytesIO(b"1\tgood\nno number\tbad\n")
        self.refused("22P02", self.run, self.client.copy_to_table("copied", source=wrong))

        # The client gives up in the middle: a CopyFail.
        async def broken():
            yield LINES[0].encode()
            raise EOFError("enough")

        try:
            self.run(self.client.copy_to_table("copied", source=broken()))
            raise AssertionError("it did not give up")
        except EOFError:
            pass
        # The server fails in the middle.
        failing = "SELECT 100 / (300 - n) FROM generate_series(1, 400) n"
        out = self.client.copy_from_query(failing, output=io.BytesIO())
        self.refused("22012", self.run, out)
        equal(self.value("SELECT count(*) FROM copied"), 0)

    def cancel(self):
        self.run(self.canceled())
        equal(self.value("SELECT 8 FROM pg_sleep(0.002)"), 8)

    async def canceled(self):
        slow = asyncio.ensure_future(self.client.execute(SLOW))
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while await self.other.fetchval(f"{ACTIVE} '{SLOW}'") == 0:
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError("the server does not begin")
        slow.cancel()
        try:
            await slow
            raise AssertionError("it slept for a minute")
        except asyncio.CancelledError:
            pass
        equal(await self.client.fetchval("SELECT 7"), 7)
        # One that comes about when its statement ends meets that or nothing.
        try:
            await self.client.execute("SELECT pg_sleep(0.002)", timeout=0.002)
        except asyncio.TimeoutError:
            pass

    def cursor(self):
        self.run(self.portals())

    async def portals(self):
        async with self.client.transaction():
            sql = "SELECT n FROM generate_series(1, $1::int) n"
            rows = [row["n"] async for row in self.client.cursor(sql, 120, prefetch=25)]
            equal(rows, list(range(1, 121)))
            # One that is left in the middle.
            left = await self.client.cursor(sql, 120)
            equal([row["n"] for row in await left.fetch(3)], [1, 2, 3])

    def notifications(self):
        equal(self.value("SELECT pg_listening_channels()"), "news")
        self.run(self.listened())

    async def listened(self):
        first = self.sent
        for _ in range(5):
            await self.other.execute("SELECT pg_notify('news', $1)", str(self.sent))
            self.sent += 1
        async with asyncio.timeout(PATIENCE):
            while not self.all_heard(first, [payload for _, payload in self.heard]):
                self.news.clear()
                await self.news.wait()
        equal({channel for channel, _ in self.heard}, {"news"})
        self.heard.clear()

    def batch(self):
        self.execute("TRUNCATE copied")
        rows = [(number, f"ä {number}") for number in range(1, 101)]
        insert = "INSERT INTO copied VALUES ($1, $2)"
        # Bind and Execute a hundred times, with one Sync.
        self.run(self.client.executemany(insert, rows))
        found = self.run(self.client.fetch("SELECT id, what FROM copied ORDER BY id"))
        equal([tuple(row) for row in found], rows)
        # One of them fails: nothing is done.
        delete = "DELETE FROM copied WHERE id = 10 / $1"
        wrong = [(1,), (2,), (0,), (5,)]
        self.refused("22012", self.run, self.client.executemany(delete, wrong))
        equal(self.value("SELECT count(*) FROM copied"), 100)
        equal(self.run(self.client.execute("SELECT 1; SELECT 2, 3; SELECT 4 WHERE false")), "SELECT 0")


serve(Asyncpg)
