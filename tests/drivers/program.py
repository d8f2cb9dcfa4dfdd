"""A driver: a process of its own that is asked for one step at a time.

It is started with a port and a user's name, and has the password in PGPASSWORD. A line on
its standard input names a step; one line on its standard output answers, "ok" or "failed: "
and the error. It connects before its first line, also an "ok", and ends with its input.
"""

import itertools
import os
import queue
import subprocess
import threading

PATIENCE = 60.0


class Program:
    """One driver's process. What fails says which driver it was, and at which step."""

    def __init__(self, name, command, port, password):
        self.name = name
        self.step = "connect"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*command, str(port), name], stdin=pipe, stdout=pipe, text=True, encoding="utf-8",
            env={**os.environ, "PGPASSWORD": password, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def failure(self, why):
        return AssertionError(f"{self.name}, step {self.step}: {why}")

    def ask(self, step):
        """Begins a step; `answer` waits for its end."""
        self.step = step
        try:
            self.process.stdin.write(step + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as gone:
            raise self.failure("its process has ended") from gone

    def answer(self):
        try:
            line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise self.failure(f"no answer for {PATIENCE:.0f} s") from None
        if line is None:
            raise self.failure(f"its process has ended, exit code {self.process.wait(PATIENCE)}")
        if line != "ok":
            raise self.failure(line.removeprefix("failed: "))

    def run(self, step):
        self.ask(step)
        self.answer()

    def close(self):
        """The driver closes its sessions by itself."""
        self.step = "close"
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        if code != 0:
            raise self.failure(f"exit code {code}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


class Work:
    """Step after step on a thread of its own, while something else is done."""

    def __init__(self, program, steps):
        self.program = program
        self.steps = steps
        self.changed = threading.Condition()
        self.done = 0
        self.over = False
        self.failed = None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        for step in itertools.cycle(self.steps):
            if self.over:
                return
            try:
                self.program.run(step)
            except Exception as error:
                self.failed = error
            with self.changed:
                self.done += 1
                self.changed.notify_all()
            if self.failed:
                return

    def go_on(self, steps):
        """Waits until so many more steps have ended."""
        with self.changed:
            goal = self.done + steps
            self.changed.wait_for(lambda: self.failed or self.done >= goal)
        if self.failed:
            raise self.failed

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over = True
        self.thread.join()
        # What has gone wrong here may be why the other has, too.
        if self.failed:
            raise self.failed
