"""Real drivers through the proxy, while their sessions are moved and held.

usage: run.py POSTGRESQL_PROGRAMS SQLPROXY TOKIO_POSTGRES [DRIVER...]

node finds its modules by NODE_PATH, java its driver by CLASSPATH, Python by its path.
"""

import pathlib
import sys
import time
import traceback

import psycopg

from program import Program, Work
from stage import PASSWORD, Rounds, Stage

HERE = pathlib.Path(__file__).parent

STEPS = [
    "settings", "statements", "types", "errors", "copy_in", "copy_out", "failing_copy",
    "cancel", "cursor", "notifications", "batch",
]
# Each step goes on until every session of the driver has been moved that often.
STEP_MOVES = 6
# While the driver works.
RESTARTS = 5


class Driver:
    """How a driver is started, how many sessions it has, and what it has no way to do."""

    def __init__(self, name, command, sessions=2, without=()):
        self.name = name
        self.command = command
        self.sessions = sessions
        self.steps = [step for step in STEPS if step not in without]
        assert len(self.steps) + len(without) == len(STEPS)


def drivers(tokio_postgres):
    # The small compiler alone, and no threads beside: this runs for seconds, on two cores.
    java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    copies = ["copy_in", "copy_out", "failing_copy"]

    def python(file):
        return [sys.executable, HERE / "python" / file]

    node = ["node", "--no-deprecation", HERE / "node-postgres" / "driver.js"]
    pool_without = [*copies, "cancel", "notifications"]

    return [
        Driver("psycopg", python("with_psycopg.py")),
        Driver("psycopg2", python("with_psycopg2.py")),
        Driver("asyncpg", python("with_asyncpg.py")),
        Driver("pg8000", python("with_pg8000.py"), without=["cancel"]),
        Driver("sqlalchemy", python("with_sqlalchemy.py"), sessions=3, without=pool_without),
        Driver("node-postgres", node, sessions=3),
        Driver("pgjdbc", [*java, HERE / "pgjdbc" / "Driver.java"]),
        Driver("tokio-postgres", [tokio_postgres]),
    ]


def without_the_proxy(stage, driver):
    """What the steps expect is what PostgreSQL does by itself."""
    with Program(driver.name, driver.command, stage.pg_port, PASSWORD) as program:
        program.answer()
        for step in driver.steps:
            program.run(step)
        program.close()


def while_moved(stage, driver, program):
    """Each step again and again, until it has met enough moves."""
    for step in driver.steps:
        before = stage.sessions(driver.name, lambda one: one.moves)
        deadline = time.monotonic() + 60
        while True:
            program.run(step)
            after = stage.sessions(driver.name, lambda one: one.moves)
            same_sessions(program, before, after)
            moved = [after[conn] - before[conn] for conn in before]
            if min(moved) >= STEP_MOVES:
                break
            assert time.monotonic() < deadline, f"{program.name}, step {step}: moved {moved}"


def while_held(stage, driver, program):
    """Each step is begun while the sessions are held, and ends after the restart."""
    for step in driver.steps:
        before = stage.sessions(driver.name, lambda one: one.restored)
        stage.hold()
        program.ask(step)
        stage.restart()
        program.answer()
        restored(stage, driver, program, before)
        for kept in ["settings", "statements"]:
            program.run(kept)


def at_work(stage, driver, program):
    """The server restarts under a driver that goes on with one step after the other.

    Not with a cancel: while one session is held, another cannot stop what keeps the next
    from being held.
    """
    steps = [step for step in driver.steps if step != "cancel"]
    with Work(program, steps) as work:
        for _ in range(RESTARTS):
            work.go_on(len(steps))
            before = stage.sessions(driver.name, lambda one: one.restored)
            stage.hold()
            stage.restart()
            restored(stage, driver, program, before)


def restored(stage, driver, program, before):
    """Waits until each session is back, and no hold is left."""

    def now():
        return stage.sessions(driver.name, lambda one: one.restored)

    goal = {conn: count + 1 for conn, count in before.items()}
    stage.log.wait(lambda: now() == goal, f"{program.name}, step {program.step}: restored")
    stage.release()


def same_sessions(program, before, after):
    """No driver may help itself by a new connection."""
    assert before and before.keys() == after.keys(), (
        f"{program.name}, step {program.step}: its sessions were {[*before]}, are {[*after]}"
    )


def none_lost(stage):
    assert stage.losses == 0, f"{stage.losses} sessions were lost"


def wrong_password(stage, driver):
    """It is the proxy that asks, and it does not let everybody in."""
    try:
        psycopg.connect(
            host="127.0.0.1", port=stage.port, user=driver.name, dbname="postgres",
            password="another", sslmode="disable",
        ).close()
        raise AssertionError("a wrong password is taken")
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error), error


class Board:
    """Runs scenarios, tells each one's outcome and counts the failed."""

    def __init__(self):
        self.failed = 0

    def run(self, stage, name, scenario):
        before, began = stage.moves, time.monotonic()
        try:
            scenario()
        except Exception as error:
            print(f"FAILED  {name}: {error}", flush=True)
            traceback.print_exc()
            print("".join(stage.log.last), file=sys.stderr, flush=True)
            self.failed += 1
            return False
        took = time.monotonic() - began
        print(f"ok      {name}: {stage.moves - before} moves, {took:.1f} s", flush=True)
        return True


def play(board, stage, driver, left_out=()):
    """One driver's process through all scenarios; the first failure ends it."""
    with Program(driver.name, driver.command, stage.port, PASSWORD) as program:

        def connects():
            program.answer()
            # The log may tell of a session just after its client has been told.
            stage.log.wait(
                lambda: len(stage.sessions(driver.name, lambda one: one)) == driver.sessions,
                f"{driver.sessions} sessions of {driver.name}",
            )

        def moved():
            with Rounds(stage):
                while_moved(stage, driver, program)

        known = {
            "connects": connects,
            "is moved": moved,
            "is held, step by step": lambda: while_held(stage, driver, program),
            f"works through {RESTARTS} restarts": lambda: at_work(stage, driver, program),
            "ends": program.close,
        }
        return all(
            board.run(stage, f"{driver.name} {name}", scenario)
            for name, scenario in known.items()
            if name not in left_out
        )


def main(postgresql, sqlproxy, tokio_postgres, *names):
    known = drivers(tokio_postgres)
    unknown = set(names) - {one.name for one in known}
    assert not unknown, f"no drivers: {', '.join(unknown)}"
    chosen = [one for one in known if not names or one.name in names]
    users = [one.name for one in chosen]
    board = Board()
    two = ["127.0.0.1", "127.0.0.2"]
    with Stage(postgresql, sqlproxy, "trust", two, users) as stage:
        print("\none server on two addresses, the proxy's login by trust", flush=True)
        for driver in chosen:
            if board.run(stage, f"{driver.name} alone", lambda: without_the_proxy(stage, driver)):
                play(board, stage, driver)
        board.run(stage, "no session lost", lambda: none_lost(stage))
    with Stage(postgresql, sqlproxy, "scram", ["127.0.0.1"], users) as stage:
        print("\none server on one address, the clients' login at the proxy by SCRAM", flush=True)
        for driver in chosen:
            board.run(stage, f"{driver.name}, a wrong password", lambda: wrong_password(stage, driver))
            play(board, stage, driver, ["is held, step by step"])
        board.run(stage, "no session lost", lambda: none_lost(stage))
    return board.failed


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
