"""What the Python drivers have in common: one step a line, see ../program.py.

A step is a method. Those here stand on `execute`, which runs SQL without parameters, and on
`value`, which gives the one value of one row; each driver has its own.
"""

import contextlib
import datetime
import decimal
import sys
import time
import traceback
import uuid

# Seconds; nothing here takes that long on a machine that is alive.
PATIENCE = 20.0

LINES = [f"{number}\tä {number}\n" for number in range(1, 501)]
TEXT = "".join(LINES)

BY_SQL = "PREPARE by_sql (int) AS SELECT $1 * 2 AS n"
KEPT = "SELECT $1::int + 1 AS n, $2::text AS t"

# PostgreSQL's types, and a value of each that comes back as it was.
TYPES = [
    ("int", -7),
    ("int8", 9007199254740993),
    ("float8", 0.1),
    ("numeric", decimal.Decimal("1.50")),
    ("bool", True),
    ("text", "text ä 日本"),
    ("bytea", bytes([0, 1, 254, 255])),
    ("date", datetime.date(2024, 2, 29)),
    ("timestamptz", datetime.datetime(2024, 2, 29, 12, 34, 56, 789000, datetime.timezone.utc)),
    ("int[]", [1, None, 3]),
    ("text", None),
    ("uuid", uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
]
VALUES = [value for _, value in TYPES]
# As the session's own time zone has it.
LOCAL = "2024-02-29 21:34:56.789+09"

ACTIVE = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = "
SLOW = "SELECT pg_sleep(50)"


def equal(found, expected):
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")


class Steps:
    """A driver's sessions: `client`, which the steps are about, and `other`."""

    def __init__(self, user):
        self.user = user
        self.sent = 0
        self.fresh = 0

    def set_up(self):
        """What every session begins with, in the driver's own words."""
        for sql in [
            "SET TimeZone = 'Asia/Tokyo'",
            'SET search_path = "$user", pg_catalog',
            "LISTEN news",
            BY_SQL,
        ]:
            self.execute(sql)

    def settings(self):
        for name, expected in [
            ("application_name", "python"),
            ("statement_timeout", "55s"),
            ("TimeZone", "Asia/Tokyo"),
            ("search_path", '"$user", pg_catalog'),
        ]:
            equal(self.value(f"SHOW {name}"), expected)
        equal(self.value("SELECT current_user::text"), self.user)

    def refused(self, code, what, *arguments):
        """The server's error is the only outcome."""
        try:
            what(*arguments)
        except Exception as error:
            if self.code(error) == code:
                return
            raise
        raise AssertionError(f"no error where {code} is due")

    @contextlib.contextmanager
    def refusing(self, code):
        try:
            yield
        except Exception as error:
            if self.code(error) == code:
                return
            raise
        raise AssertionError(f"no error where {code} is due")

    def wait_active(self, count):
        """Until the server has begun the slow statement; `count` asks how many have."""
        deadline = time.monotonic() + PATIENCE
        while count() == 0:
            if time.monotonic() > deadline:
                raise AssertionError("the server does not begin")

    def all_heard(self, first, heard):
        """Whether everything sent since `first` is there. One may come twice; no other."""
        numbers = {int(payload) for payload in heard}
        for number in numbers:
            if not first - 5 <= number < self.sent:
                raise AssertionError(f"heard {number}, sent {first} to {self.sent - 1}")
        return numbers.issuperset(range(first, self.sent))


def serve(connect):
    """One step a line, until the input ends."""
    driver = connect(int(sys.argv[1]), sys.argv[2])
    print("ok", flush=True)
    for line in sys.stdin:
        try:
            getattr(driver, line.strip())()
            print("ok", flush=True)
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            print("failed: " + " ".join(text.split()), flush=True)
    driver.close()
