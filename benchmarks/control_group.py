"""A command under a limit on memory that counts anonymous pages and the page cache alike (control groups, version 1 or 2)."""

import os
import subprocess
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Group:
    """A control group with a memory limit in bytes, for root on Linux.

    Raises:
        OSError: none can be made.
    """

    def __init__(self, limit: int) -> None:
        version_1 = (ROOT / "memory" / "memory.limit_in_bytes").exists()
        self.folder = (ROOT / "memory" if version_1 else ROOT) / f"paretomerge-{os.getpid()}"
        self.peak_file = "memory.max_usage_in_bytes" if version_1 else "memory.peak"
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))

    def run(self, words: list[object]) -> tuple[float, float, int, int]:
        """(wall seconds, CPU seconds, bytes read from disk, peak bytes of what the limit counts) of a command inside.

        Raises:
            ChildProcessError: it failed.
        """

        def enter() -> None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

        start = time.perf_counter()
        process = subprocess.Popen([str(word) for word in words], preexec_fn=enter)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise ChildProcessError(f"exit code {process.returncode}")
        peak = self.folder / self.peak_file
        wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        return wall, cpu, 512 * usage.ru_inblock, int(peak.read_text()) if peak.exists() else 0

    def close(self) -> None:
        self.folder.rmdir()
