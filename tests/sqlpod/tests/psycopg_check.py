"""Ordinary use of a pod by psycopg 3.

Usage: psycopg_check.py "host=127.0.0.1 port=26301 user=alice dbname=d"
Ends with a traceback and exit code 1 at the first wrong answer.
"""

import sys

import psycopg


def check(actual, expected):
    assert actual == expected, f"expected {expected!r}, got {actual!r}"


def main(conninfo):
    with psycopg.connect(conninfo) as conn:
        conn.execute("DROP TABLE IF EXISTS psycopg_check")
        conn.execute(
            "CREATE TABLE psycopg_check"
            " (id INT PRIMARY KEY, name TEXT, ok BOOL, ratio FLOAT, raw BYTEA)"
        )
        conn.commit()

        insert = "INSERT INTO psycopg_check VALUES (%s, %s, %s, %s, %s)"
        rows = [
            (1, "one", True, 1.5, b"\x00\x01"),
            (2, None, False, -2.0, None),
            (30000000000, "it's", None, 1e300, b""),
        ]
        # The sixth run of a statement is a prepared one.
        for row in rows:
            check(conn.execute(insert, row).rowcount, 1)
        for _ in range(7):
            found = conn.execute("SELECT * FROM psycopg_check ORDER BY id").fetchall()
            check(found, rows)
            one = conn.execute("SELECT name FROM psycopg_check WHERE id = %s", (1,))
            check(one.fetchone(), ("one",))
        conn.rollback()
        check(conn.execute("SELECT count(*) FROM psycopg_check").fetchone(), (0,))

        with conn.transaction():
            conn.execute(insert, rows[0])
            try:
                with conn.transaction():
                    conn.execute(insert, rows[0])
            except psycopg.errors.UniqueViolation:
                pass
            else:
                raise AssertionError("the second insert succeeded")
        conn.commit()
        check(conn.execute("SELECT count(*) FROM psycopg_check").fetchone(), (1,))

        check(conn.execute("SELECT %s + 1, %s || 'x'", (41, "a")).fetchone(), (42, "ax"))
        check(conn.execute("SELECT %s::int8", ("7",)).fetchone(), (7,))
        binary = conn.cursor(binary=True)
        binary.execute("SELECT id, name, ok, ratio, raw FROM psycopg_check")
        check(binary.fetchall(), rows[:1])

        with conn.cursor().copy("COPY psycopg_check (id, name) FROM STDIN") as copy:
            copy.write_row((10, "tab\there"))
            copy.write_row((11, None))
        with conn.cursor().copy(
            "COPY (SELECT id, name FROM psycopg_check WHERE id > 9 ORDER BY id) TO STDOUT"
        ) as copy:
            check([tuple(row) for row in copy.rows()], [("10", "tab\there"), ("11", None)])
        conn.commit()

        with conn.pipeline():
            first = conn.execute("SELECT %s::int8", (1,))
            second = conn.execute("SELECT %s::int8", (2,))
        check((first.fetchone(), second.fetchone()), ((1,), (2,)))
        conn.commit()

        conn.execute("SET application_name = 'renamed'")
        check(conn.info.parameter_status("application_name"), "renamed")
        conn.commit()
    print("psycopg ok")


main(sys.argv[1])
