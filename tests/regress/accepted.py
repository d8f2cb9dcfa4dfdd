"""What a moved session may print otherwise: what the README's table of limits names.

A difference is a stretch of lines, those of the plain run and those of the moved one. It
is accepted where a rule for its file explains each line on both sides, and it lies in the
part of the file that the rule is about.
"""

import re


class Rule:
    """For `file`, from the line `begin` to the line `end` of what the plain run prints;
    `plain` and `moved` are what a line on either side may be."""

    def __init__(self, reason, file, begin, end, plain, moved):
        self.reason = reason
        self.file = file
        self.begin = begin
        self.end = end
        self.plain = re.compile("|".join(plain))
        self.moved = re.compile("|".join(moved))

    def explains(self, file, printed, stretch, moved):
        """`stretch` is that of the plain run, a slice of `printed`."""
        if file != self.file:
            return False
        begin = printed.index(self.begin)
        end = printed.index(self.end, begin)
        return (
            begin < stretch.start
            and stretch.stop <= end
            and all(self.plain.fullmatch(line) for line in printed[stretch])
            and all(self.moved.fullmatch(line) for line in moved)
        )


CURRVAL = "currval and lastval fail with 55000 after a move"
LOAD = "a library by LOAD is gone after a move"
LIBRARY = "variables of a library in C begin anew after a move"

NOT_DEFINED = r'ERROR:  (lastval|currval of sequence "\w+") is not yet defined in this session'
# A table of one row as psql prints it.
ONE_ROW = [r" *(one  \| )?(currval|lastval|set_ttdummy) *", r"-[-+]*", r" *(eight \| +)?-?\d+", ""]
COUNT = r"\(\d rows?\)"
REFERENTIAL = [
    r"NOTICE:  check_pkeys_fkey_cascade: .*",
    r'ERROR:  (tuple references non-existent key|"check_fkeys2_fkey_restrict": .*)',
    r"DETAIL:  Trigger .*",
    r"CONTEXT:  SQL statement .*",
]
TTTEST = [
    *ONE_ROW,
    COUNT,
    r"ERROR:  ttdummy \(tttest\): you cannot change .*",
    r"( +-?\d+ \|){3} +-?\d+",
]

RULES = [
    Rule(
        CURRVAL, "sequence",
        "CREATE SEQUENCE sequence_test;", "-- privileges tests",
        [*ONE_ROW, COUNT], [NOT_DEFINED],
    ),
    Rule(
        "what a session had set aside of a sequence with CACHE is skipped by a move", "sequence",
        "-- cache tests", "DROP SEQUENCE test_seq1;",
        [*ONE_ROW, COUNT], [*ONE_ROW, COUNT],
    ),
    # A column's default is currval too: its row is not inserted, so it fails no check and
    # is missing from what is selected then.
    Rule(
        CURRVAL, "constraints",
        "-- Check constraints on INSERT", "-- Check constraints on system columns",
        [
            *ONE_ROW, COUNT,
            r'ERROR:  new row for relation "insert_tbl" violates check constraint "\w+"',
            r"DETAIL:  Failing row contains \(-?\d, [^,]+, -?\d\)\.",
            r" +\d \| [^|]+ \| +-?\d",
        ],
        [NOT_DEFINED, COUNT],
    ),
    # PL/pgSQL's prefix is reserved from its LOAD on, else from the session's first function.
    Rule(
        LOAD, "guc",
        "LOAD 'plpgsql';  -- this will throw a warning and delete the variable",
        "-- Test DISCARD TEMP",
        [
            r'ERROR:  (invalid|unrecognized) configuration parameter (name )?"plpgsql\.\w+"',
            r'DETAIL:  "plpgsql" is a reserved prefix\.',
        ],
        [r" plpgsql\.extra_foo_warnings *", r"-+", r" true", r"\(1 row\)", ""],
    ),
    Rule(
        LOAD, "guc",
        "-- Test DISCARD TEMP", "select myfunc(0), current_setting('work_mem');",
        [r"$^"],
        [
            r'WARNING:  invalid configuration parameter name "plpgsql\.\w+", removing it',
            r'DETAIL:  "plpgsql" is now a reserved prefix\.',
        ],
    ),
    # The extension's check_foreign_key keeps the plan that its first call in a session made,
    # with the values of that call's key in it; after a move it makes another.
    Rule(
        LIBRARY, "triggers",
        "delete from pkeys where pkey1 = 40 and pkey2 = '4';",
        "SELECT trigger_name, event_manipulation, event_object_schema, event_object_table,",
        REFERENTIAL, REFERENTIAL,
    ),
    # set_ttdummy turns a trigger on and off, by a static variable of regress.so.
    Rule(
        LIBRARY, "triggers",
        "select set_ttdummy(0);", "drop table tttest;",
        TTTEST, TTTEST,
    ),
]
