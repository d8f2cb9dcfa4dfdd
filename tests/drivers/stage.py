"""One PostgreSQL, on one address or on two, and the proxy before it."""

import collections
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading

import psycopg

ACCOUNT = "postgres"
PASSWORD = "a pass word, ä"
PATIENCE = 30.0

EVENT = re.compile(r" (session opened|session closed|transfer finished|session restored) conn=(\d+) (.*)")
VERIFIERS = (
    "SELECT '\"' || rolname || '\" \"' || rolpassword || '\"' FROM pg_authid WHERE rolcanlogin"
)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Log:
    """What a process says on its standard error, kept and waited for."""

    def __init__(self, process, take=lambda line: None):
        self.process = process
        self.take = take
        self.last = collections.deque(maxlen=40)
        self.changed = threading.Condition()
        self.over = False
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stderr:
            with self.changed:
                self.last.append(line)
                self.take(line)
                self.changed.notify_all()
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def wait(self, happened, what):
        with self.changed:
            self.changed.wait_for(lambda: self.over or happened(), PATIENCE)
            if not happened():
                raise AssertionError(f"{what}: not within {PATIENCE:.0f} s\n{''.join(self.last)}")


class Session:
    """What the log says of one."""

    def __init__(self, user):
        self.user = user
        self.moves = 0
        self.restored = 0


class Stage:
    """Everything runs below one temporary directory and ends with it.

    `login` is the proxy's method. With "scram" the server asks for it as well.
    """

    def __init__(self, programs, sqlproxy, login, hosts, users):
        self.programs = pathlib.Path(programs)
        self.sqlproxy = sqlproxy
        self.login = login
        self.backends = {f"pg-{at}": host for at, host in enumerate(hosts, start=1)}
        self.users = users
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sqlproxy-drivers-"))
        self.data = self.directory / "data"
        self.config = self.directory / "proxy.conf"
        self.pg_port = free_port()
        self.port = None
        self.server = None
        self.proxy = None
        self.log = None
        # By their numbers, those that are open.
        self.open = {}
        self.moves = 0
        self.losses = 0

    def as_account(self, program, *arguments):
        command = [str(self.programs / program), *map(str, arguments)]
        if os.geteuid() == 0:
            change = ["setpriv", "--pdeathsig", "INT", "--reuid", ACCOUNT, "--regid", ACCOUNT]
            command = [*change, "--clear-groups", "--", *command]
        return command

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        self.directory.chmod(0o711)
        self.data.mkdir()
        password = self.directory / "password"
        password.write_text(PASSWORD + "\n", encoding="utf-8")
        if os.geteuid() == 0:
            shutil.chown(self.data, ACCOUNT, ACCOUNT)
            shutil.chown(password, ACCOUNT, ACCOUNT)
        auth = {"trust": "trust", "scram": "scram-sha-256"}[self.login]
        initdb = self.as_account(
            "initdb", "--no-sync", f"--auth={auth}", "--username=postgres", "--pwfile", password,
            "--encoding=UTF8", "--locale=C", "--pgdata", self.data,
        )
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/")
        self.start_server()
        verifiers = self.make_users()
        login = '[login]\nmethod = "trust"\n'
        if self.login == "scram":
            users = self.directory / "users"
            users.touch(mode=0o600)
            users.write_text(verifiers, encoding="utf-8")
            login = '[login]\nmethod = "scram"\nauth_file = "users"\n'
        self.config.write_text(
            'listen = "127.0.0.1:0"\n'
            'control_socket = "control.sock"\n'
            'dialect = "postgresql"\n'
            + login
            + '[migration]\nhold = "60s"\n'
            + "".join(
                f'[[backend]]\nname = "{name}"\naddress = "{host}:{self.pg_port}"\n'
                for name, host in self.backends.items()
            )
        )
        self.proxy = subprocess.Popen(
            [self.sqlproxy, "--config", self.config],
            stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )
        self.log = Log(self.proxy, self.take)
        self.log.wait(lambda: self.port, "the proxy listens")

    def stop(self):
        if self.proxy:
            self.proxy.terminate()
            self.proxy.wait(PATIENCE)
        self.stop_server()
        shutil.rmtree(self.directory)

    def start_server(self):
        hosts = ",".join(self.backends.values())
        command = self.as_account(
            "postgres", "-D", self.data, "-h", hosts, "-p", self.pg_port, "-k", "", "-c", "fsync=off"
        )
        self.server = subprocess.Popen(
            command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace",
        )
        ready = threading.Event()

        def take(line):
            if "database system is ready to accept connections" in line:
                ready.set()

        Log(self.server, take).wait(ready.is_set, "PostgreSQL starts")

    def stop_server(self):
        if self.server:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(PATIENCE)
            self.server = None

    def make_users(self):
        """Users by which the log tells whose a session is, each with a schema of its own."""
        with psycopg.connect(
            host="127.0.0.1", port=self.pg_port, user="postgres", password=PASSWORD,
            dbname="postgres", sslmode="disable", autocommit=True,
        ) as client:
            for user in self.users:
                client.execute(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{PASSWORD}'")
                client.execute(
                    f'CREATE SCHEMA AUTHORIZATION "{user}"'
                    " CREATE TABLE copied (id int PRIMARY KEY, what text)"
                )
                client.execute(f"CREATE TYPE \"{user}\".mood AS ENUM ('sad', 'happy')")
            return "".join(f"{line}\n" for (line,) in client.execute(VERIFIERS))

    def take(self, line):
        """One line of the proxy's log."""
        if listening := re.search(r" listening address=127\.0\.0\.1:(\d+)", line):
            self.port = self.port or int(listening[1])
        if not (event := EVENT.search(line)):
            return
        event, conn, rest = event.groups()
        if event == "session opened":
            self.open[conn] = Session(re.search(r" user=(\S+)", rest)[1])
        elif event == "session closed":
            self.open.pop(conn, None)
        elif event == "session restored":
            self.open[conn].restored += 1
        elif "outcome=success" in rest:
            self.moves += 1
            if conn in self.open:
                self.open[conn].moves += 1
        elif "outcome=fatal" in rest:
            self.losses += 1

    def sessions(self, user, count):
        """What `count` says of each open session of one user, by their numbers."""
        with self.log.changed:
            return {conn: count(one) for conn, one in self.open.items() if one.user == user}

    def command(self, *arguments):
        """Asks the proxy, as an operator would."""
        asked = [self.sqlproxy, "--config", str(self.config), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=False)

    def hold(self):
        for backend in self.backends:
            held = self.command("hold", backend, "--wait", "30s")
            assert held.returncode == 0, held.stdout + held.stderr

    def release(self):
        for backend in self.backends:
            self.command("release", backend)

    def restart(self):
        self.stop_server()
        self.start_server()


class Rounds:
    """SIGUSR1 again and again, while something is done."""

    def __init__(self, stage, pause=0.05):
        self.stage = stage
        self.pause = pause
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.over.wait(self.pause):
            self.stage.proxy.send_signal(signal.SIGUSR1)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
