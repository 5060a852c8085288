"""Running programs, pinned to a core: what they cost, and their end."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

PROXY_CORE, LOAD_CORE = 0, 1


class Failed(RuntimeError):
    """A contestant or a load generator did not do its part."""


@dataclass
class Instance:
    """One running program; stopped by its own process id."""
    argv: list
    core: int
    log: Path
    cwd: Path
    process: subprocess.Popen = field(init=False, default=None)
    started: float = field(init=False, default=0.0)

    def start(self):
        self.started = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(a) for a in self.argv], cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, {self.core}))
        return self

    def failed(self, what):
        return Failed(f"{self.argv[0]} {what}:\n{self.log.read_text(errors='replace')[-800:]}")

    def wait_for(self, port, seconds=20):
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return self
            time.sleep(0.02)
        raise self.failed(f"does not listen on {port}")

    def family(self):
        """Its process id and those of its descendants."""
        children = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue.extend(children.get(pid, []))
        return found

    def cpu_nanos(self):
        """Time on a processor, from the scheduler's clock of each thread."""
        total = 0
        for pid in self.family():
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError, IndexError):
                    total += int(task.read_text().split()[0])
        return total

    def memory_kib(self, field="VmRSS"):
        """Resident memory; `RssAnon` is the part that no file backs."""
        total = 0
        for pid in self.family():
            with contextlib.suppress(OSError, TypeError):
                total += int(re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])
        return total

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        family = self.family()
        for sig, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                return


def on_load_core(argv, seconds):
    """Runs a load generator beside the service and returns what it printed."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=seconds,
                          preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}))
    if done.returncode != 0:
        raise Failed(f"{argv[0]} failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    return done.stdout
