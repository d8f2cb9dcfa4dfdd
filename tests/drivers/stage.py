"""One PostgreSQL on two addresses and the proxy before it."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ACCOUNT = "postgres"
PATIENCE = 30.0


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Stage:
    """Everything runs below one temporary directory and ends with it."""

    def __init__(self, programs, sqlproxy):
        self.programs = pathlib.Path(programs)
        self.sqlproxy = sqlproxy
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sqlproxy-drivers-"))
        self.data = self.directory / "data"
        self.data.mkdir()
        self.directory.chmod(0o711)
        if os.geteuid() == 0:
            shutil.chown(self.data, ACCOUNT, ACCOUNT)
        self.pg_port = free_port()
        self.port = free_port()
        self.server = None
        self.proxy = None

    def as_account(self, program, *arguments):
        command = [str(self.programs / program), *map(str, arguments)]
        if os.geteuid() == 0:
            change = ["setpriv", "--pdeathsig", "INT", "--reuid", ACCOUNT, "--regid", ACCOUNT]
            command = [*change, "--clear-groups", "--", *command]
        return command

    def __enter__(self):
        initdb = self.as_account(
            "initdb", "--no-sync", "--auth=trust", "--username=postgres",
            "--encoding=UTF8", "--locale=C", "--pgdata", self.data,
        )
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/")
        self.start_server()
        config = self.directory / "proxy.conf"
        config.write_text(
            f'listen = "127.0.0.1:{self.port}"\n'
            'control_socket = "control.sock"\n'
            'dialect = "postgresql"\n'
            '[login]\nmethod = "trust"\n'
            '[migration]\nhold = "60s"\n'
            + "".join(
                f'[[backend]]\nname = "{name}"\naddress = "{host}:{self.pg_port}"\n'
                for name, host in [("one", "127.0.0.1"), ("two", "127.0.0.2")]
            )
        )
        self.config = config
        self.log = open(self.directory / "log", "wb")
        self.proxy = subprocess.Popen([self.sqlproxy, "--config", config], stderr=self.log)
        self.wait_port("127.0.0.1", self.port)
        return self

    def __exit__(self, *_):
        if self.proxy:
            self.proxy.terminate()
            self.proxy.wait(PATIENCE)
        self.stop_server()
        shutil.rmtree(self.directory)

    def wait_port(self, host, port):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection((host, port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def start_server(self):
        command = self.as_account(
            "postgres", "-D", self.data, "-h", "127.0.0.1,127.0.0.2",
            "-p", self.pg_port, "-k", "", "-c", "fsync=off",
        )
        self.server = subprocess.Popen(
            command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ready = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.pg_port)]
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(ready, check=False).returncode != 0:
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.02)

    def stop_server(self):
        if self.server:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(PATIENCE)
            self.server = None

    def command(self, *arguments):
        """Asks the proxy, as an operator would."""
        asked = [self.sqlproxy, "--config", str(self.config), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=False)

    def moves(self):
        """How many transfers have moved a session so far."""
        return (self.directory / "log").read_bytes().count(b"outcome=success")

    def losses(self):
        """Sessions that a transfer has cost; never any."""
        return (self.directory / "log").read_bytes().count(b"outcome=fatal")


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
