"""Real Python drivers through the proxy, while their sessions are moved and held.

usage: run.py POSTGRESQL_PROGRAMS SQLPROXY
"""

import asyncio
import datetime
import decimal
import sys
import time
import traceback

import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2
import sqlalchemy

from stage import Rounds, Stage

# Moves that a scenario goes on for, at the least.
MOVES = 40

VALUES = (7, "text ä 日本", decimal.Decimal("1.50"), True, datetime.date(2024, 2, 29))
TYPES = "SELECT %s::int, %s::text, %s::numeric, %s::bool, %s::date"


def dsn(stage):
    return f"host=127.0.0.1 port={stage.port} user=postgres dbname=postgres sslmode=disable"


def until_moved(stage, once):
    """Calls `once` again and again until its session has been moved often enough."""
    goal = stage.moves() + MOVES
    deadline = time.monotonic() + 60
    while stage.moves() < goal:
        once()
        assert time.monotonic() < deadline, "its session is not moved"


def with_psycopg(stage):
    with psycopg.connect(dsn(stage), autocommit=True, prepare_threshold=1) as client:
        client.execute("SET application_name = 'psycopg'")
        client.execute("CREATE TEMPORARY TABLE IF NOT EXISTS gone (a int)")
        client.execute("DROP TABLE gone")
        client.execute("CREATE TABLE IF NOT EXISTS copied (a int)")

        def once():
            assert client.execute(TYPES, VALUES).fetchone() == VALUES
            with client.pipeline():
                answers = [client.execute("SELECT %s::int", (n,)) for n in range(20)]
            assert [a.fetchone()[0] for a in answers] == list(range(20))
            with client.transaction():
                client.execute("TRUNCATE copied")
                with client.cursor().copy("COPY copied FROM STDIN") as copy:
                    for number in range(100):
                        copy.write_row((number,))
                with client.cursor(name="server_side") as cursor:
                    cursor.itersize = 10
                    found = cursor.execute("SELECT a FROM copied ORDER BY a")
                    assert [row[0] for row in found] == list(range(100))
            try:
                with client.cursor().copy("COPY copied FROM STDIN") as copy:
                    copy.write(b"no number\n")
                raise AssertionError("a wrong COPY is taken")
            except psycopg.errors.InvalidTextRepresentation:
                pass
            assert client.execute("SHOW application_name").fetchone() == ("psycopg",)

        until_moved(stage, once)
        with psycopg.connect(dsn(stage), autocommit=True) as other:
            client.execute("LISTEN news")
            goal = stage.moves() + 4
            sent = 0
            while stage.moves() < goal:
                other.execute("SELECT pg_notify('news', %s)", (str(sent),))
                sent += 1
            heard = set()
            for notify in client.notifies(timeout=10, stop_after=None):
                heard.add(int(notify.payload))
                if len(heard) == sent:
                    break
            assert heard == set(range(sent)), f"{sent} sent, heard {sorted(heard)}"


def with_psycopg2(stage):
    client = psycopg2.connect(dsn(stage))
    client.autocommit = True
    cursor = client.cursor()
    cursor.execute("PREPARE kept AS SELECT $1::int + 1")

    def once():
        cursor.execute(TYPES, VALUES)
        assert cursor.fetchone() == VALUES
        cursor.execute("EXECUTE kept (41)")
        assert cursor.fetchone() == (42,)
        try:
            cursor.execute("SELECT 1 / 0")
            raise AssertionError("no error")
        except psycopg2.errors.DivisionByZero:
            pass

    until_moved(stage, once)
    client.close()


def with_pg8000(stage):
    client = pg8000.dbapi.connect(
        user="postgres", host="127.0.0.1", port=stage.port, database="postgres"
    )
    client.autocommit = True
    cursor = client.cursor()

    def once():
        cursor.execute(TYPES, VALUES)
        assert tuple(cursor.fetchone()) == VALUES
        client.autocommit = False
        cursor.execute("SELECT count(*) FROM pg_class")
        assert cursor.fetchone()[0] > 0
        client.commit()
        client.autocommit = True

    until_moved(stage, once)
    client.close()


def with_sqlalchemy(stage):
    url = f"postgresql+psycopg://postgres@127.0.0.1:{stage.port}/postgres"
    engine = sqlalchemy.create_engine(url, pool_size=3)
    table = sqlalchemy.Table(
        "orders", sqlalchemy.MetaData(),
        sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
        sqlalchemy.Column("what", sqlalchemy.Text),
    )
    table.create(engine)

    def once():
        with engine.begin() as client:
            client.execute(table.insert(), [{"what": str(n)} for n in range(5)])
            found = client.execute(sqlalchemy.select(table.c.what).limit(5)).scalars().all()
            assert found == ["0", "1", "2", "3", "4"]

    until_moved(stage, once)
    engine.dispose()


async def asyncpg_scenario(stage):
    client = await asyncpg.connect(
        user="postgres", host="127.0.0.1", port=stage.port, database="postgres", ssl=False
    )
    sql = "SELECT $1::int, $2::text, $3::numeric, $4::bool, $5::date"
    goal = stage.moves() + MOVES
    deadline = time.monotonic() + 60
    while stage.moves() < goal:
        assert tuple(await client.fetchrow(sql, *VALUES)) == VALUES
        async with client.transaction():
            rows = [row["n"] async for row in client.cursor("SELECT generate_series(1, 120) n")]
            assert rows == list(range(1, 121))
        # A cancel meets its own query, and never the next one.
        try:
            await client.execute("SELECT pg_sleep(60)", timeout=0.05)
            raise AssertionError("it slept for a minute")
        except asyncio.TimeoutError:
            pass
        await client.fetchval("SELECT pg_sleep(0.002)")
        assert time.monotonic() < deadline, "its session is not moved"
    await client.close()


def with_asyncpg(stage):
    asyncio.run(asyncpg_scenario(stage))


def through_restarts(stage):
    """A session of each driver is held while the server restarts, five times."""
    one = psycopg.connect(dsn(stage), autocommit=True, prepare_threshold=1)
    two = psycopg2.connect(dsn(stage))
    two.autocommit = True
    three = pg8000.dbapi.connect(
        user="postgres", host="127.0.0.1", port=stage.port, database="postgres"
    )
    three.autocommit = True
    one.execute("SET application_name = 'one'")
    two.cursor().execute("SET application_name = 'two'")
    three.cursor().execute("SET application_name = 'three'")
    for _ in range(5):
        for backend in ["one", "two"]:
            held = stage.command("hold", backend, "--wait", "30s")
            assert held.returncode == 0, held.stdout + held.stderr
        stage.stop_server()
        stage.start_server()
        for _ in range(3):
            assert one.execute("SELECT %s::int", (7,)).fetchone() == (7,)
        for client, name in [(one, "one"), (two, "two"), (three, "three")]:
            cursor = client.cursor()
            cursor.execute("SELECT current_setting('application_name')")
            assert cursor.fetchone()[0] == name
        for backend in ["one", "two"]:
            stage.command("release", backend)
    for client in [one, two, three]:
        client.close()


SCENARIOS = [with_psycopg, with_psycopg2, with_pg8000, with_sqlalchemy, with_asyncpg]


def main(programs, sqlproxy):
    failed = 0
    with Stage(programs, sqlproxy) as stage:
        for scenario in [*SCENARIOS, through_restarts]:
            name = scenario.__name__.replace("_", " ")
            before, began = stage.moves(), time.monotonic()
            try:
                if scenario is through_restarts:
                    scenario(stage)
                else:
                    with Rounds(stage):
                        scenario(stage)
                took = time.monotonic() - began
                print(f"ok      {name}: {stage.moves() - before} moves, {took:.1f} s", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED  {name}", flush=True)
                traceback.print_exc()
        if stage.losses():
            failed += 1
            print(f"FAILED  {stage.losses()} sessions were lost", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
