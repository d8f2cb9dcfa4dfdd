"""PostgreSQL's own regression files through the proxy, while their sessions are moved.

Each file is run by psql twice, each time on a new server: on a plain connection and
through the proxy. What psql prints has to be the same, but for what `accepted.py` lists.

usage: run.py PROGRAMS SQLPROXY REGRESS OUTPUT [--pause SECONDS] [FILE...]

REGRESS is PostgreSQL's src/test/regress with its libraries in `lib`. OUTPUT gets what psql
prints, one file each below `plain` and `moved`, and the proxy's log.
"""

import argparse
import collections
import difflib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "drivers"))

from accepted import RULES  # noqa: E402
from stage import ACCOUNT, Rounds, Stage  # noqa: E402

DATABASE = "regression"
# What pg_regress sets (pg_regress.c, `initialize_environment`).
ENVIRONMENT = {
    "LC_MESSAGES": "C",
    "LANG": "C",
    "PGTZ": "America/Los_Angeles",
    "PGDATESTYLE": "Postgres, MDY",
    "PGOPTIONS": "-c intervalstyle=postgres_verbose",
    "PGGSSENCMODE": "disable",
    "PG_DLSUFFIX": ".so",
}
SETTINGS = "max_prepared_transactions = 2\n"
# For the database (pg_regress.c, `create_database`).
DEFAULTS = {
    "lc_messages": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "bytea_output": "hex",
    "timezone_abbreviations": "Default",
}
# For one file; each takes seconds.
PATIENCE = 600


class Server(Stage):
    """A new server as pg_regress makes one, and the proxy before it."""

    def __init__(self, arguments, name, regress):
        super().__init__(arguments.programs, arguments.sqlproxy)
        self.regress = regress
        self.results = arguments.output / name
        self.results.mkdir(parents=True)
        self.kept_log = arguments.output / f"{name}.log"
        # Paths stand in what is printed, so they are the same each time.
        self.scratch = regress.parent / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.scratch / "results").mkdir(parents=True)
        if os.geteuid() == 0:
            for directory in (self.scratch, self.scratch / "results"):
                shutil.chown(directory, ACCOUNT, ACCOUNT)
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PG", "LC_", "LANGUAGE"))
        }
        self.environment = inherited | ENVIRONMENT | {
            "PG_ABS_SRCDIR": str(regress),
            "PG_ABS_BUILDDIR": str(self.scratch),
            "PG_LIBDIR": str(regress / "lib"),
        }

    def start_server(self):
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as settings:
            settings.write(SETTINGS)
        super().start_server()

    def __enter__(self):
        super().__enter__()
        statements = [f"CREATE DATABASE {DATABASE} TEMPLATE template0"]
        for name, value in DEFAULTS.items():
            statements.append(f"ALTER DATABASE {DATABASE} SET {name} TO '{value}'")
        for statement in statements:
            command = self.psql(self.pg_port, "postgres", "-c", statement)
            subprocess.run(command, check=True, env=self.environment)
        return self

    def __exit__(self, *error):
        shutil.copy(self.directory / "log", self.kept_log)
        super().__exit__(*error)

    def psql(self, port, database, *arguments):
        command = [str(self.programs / "psql"), "-X", "-q", "-h", "127.0.0.1", "-p", str(port)]
        return [*command, "-U", "postgres", "-d", database, *arguments]

    def run(self, name, port):
        """Runs one file as pg_regress does."""
        hidden = ["-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on"]
        command = self.psql(port, DATABASE, "-a", *hidden)
        environment = self.environment | {"PGAPPNAME": f"pg_regress/{name}"}
        with open(self.regress / "sql" / f"{name}.sql", "rb") as sql, open(
            self.results / f"{name}.out", "wb"
        ) as printed:
            ended = subprocess.run(
                command, check=False, env=environment, timeout=PATIENCE,
                stdin=sql, stdout=printed, stderr=subprocess.STDOUT,
            )
            if ended.returncode:
                printed.write(f"psql: exit code {ended.returncode}\n".encode())


def schedule(regress):
    """The files, in an order in which each finds what it needs."""
    lines = (regress / "parallel_schedule").read_text(encoding="utf-8").splitlines()
    return [name for line in lines if line.startswith("test:") for name in line.split()[1:]]


def printed(path):
    return path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()


def is_expected(regress, path):
    """Whether that is what PostgreSQL's own test expects."""
    found = path.read_bytes()
    expected = (regress / "expected").glob(f"{path.stem}*.out")
    own = re.compile(re.escape(path.stem) + r"(_\d+)?\.out")
    return any(own.fullmatch(other.name) and other.read_bytes() == found for other in expected)


def compare(file, plain, moved, accepted):
    """Whether both are the same, but for what is accepted, which is counted."""
    if plain == moved:
        return True
    matcher = difflib.SequenceMatcher(None, plain, moved, autojunk=False)
    unexplained = False
    for kind, i, j, k, l in matcher.get_opcodes():
        if kind == "equal":
            continue
        reasons = [
            rule.reason for rule in RULES
            if rule.explains(file, plain, slice(i, j), moved[k:l])
        ]
        if reasons:
            accepted[reasons[0]].add(file)
        else:
            unexplained = True
    if unexplained:
        sys.stdout.writelines(
            line + "\n" for line in difflib.unified_diff(
                plain, moved, f"plain/{file}", f"moved/{file}", lineterm=""
            )
        )
    return not unexplained


def kind_of(reason):
    """A reason without what is one session's own."""
    reason = re.sub(r"^(one|two): restore: ", "", reason)
    reason = re.sub(r'"[^"]*"', '"…"', reason)
    return re.sub(r"\d+", "N", reason)


def value(line, key):
    found = re.search(rf'\b{key}=(?:"((?:\\.|[^"\\])*)"|(\S*))', line)
    quoted, bare = found.groups()
    return bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def report_moves(log):
    """What the proxy's log says; how many moves, and how many sessions were lost."""
    outcomes = collections.Counter()
    for line in log:
        if "transfer finished" in line:
            outcomes[value(line, "outcome")] += 1
    print(f"    moves              {outcomes['success']}")
    print(f"    sessions lost      {outcomes['fatal']}")
    stayed = collections.defaultdict(set)
    for line in log:
        if "session cannot move" in line:
            stayed[kind_of(value(line, "reason"))].add(value(line, "conn"))
    print("    sessions that could not move for a while, and why")
    for reason, sessions in sorted(stayed.items(), key=lambda item: -len(item[1])):
        print(f"    {len(sessions):6}  {reason}")
    return outcomes["success"], outcomes["fatal"]


def main():
    parser = argparse.ArgumentParser()
    for name in ("programs", "sqlproxy", "regress", "output"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_intermixed_args()
    files = arguments.files or schedule(arguments.regress)
    shutil.rmtree(arguments.output, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="sqlproxy-regress-") as directory:
        # Where the server's account can read it.
        os.chmod(directory, 0o755)
        regress = pathlib.Path(directory) / "regress"
        shutil.copytree(arguments.regress, regress)
        with Server(arguments, "plain", regress) as server:
            began = time.monotonic()
            for file in files:
                server.run(file, server.pg_port)
            print(f"    without the proxy  {time.monotonic() - began:.0f} s", flush=True)
        with Server(arguments, "moved", regress) as server, Rounds(server, arguments.pause):
            began = time.monotonic()
            for file in files:
                server.run(file, server.port)
            print(f"    moved all the time {time.monotonic() - began:.0f} s", flush=True)

    plain, moved = (
        {file: arguments.output / name / f"{file}.out" for file in files}
        for name in ("plain", "moved")
    )
    accepted = collections.defaultdict(set)
    differ = [
        file for file in files
        if not compare(file, printed(plain[file]), printed(moved[file]), accepted)
    ]
    expected = sum(is_expected(arguments.regress, path) for path in plain.values())
    print(f"    files              {len(files)}")
    print(f"    as PostgreSQL expects, without the proxy: {expected}")
    moves, lost = report_moves((arguments.output / "moved.log").read_text().splitlines())
    print("    differences that the limits explain")
    for reason, where in accepted.items():
        print(f"    {len(where):6}  {reason}: {', '.join(sorted(where))}")
    print(f"    files with other differences: {len(differ)} {' '.join(differ)}")
    if differ or lost or moves < len(files):
        sys.exit("regress: not as it should be")


if __name__ == "__main__":
    main()
