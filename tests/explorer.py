"""``paretomerge explore`` as a program, watched: it tells of every address outside this machine that it tries to reach."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WATCHED = """
import socket, sys
HERE = ("127.0.0.1", "localhost", "::1", None)
connect, resolve = socket.socket.connect, socket.getaddrinfo
def connecting(self, address):
    if self.family != socket.AF_UNIX and address[0] not in HERE:
        print("reached for", address, file=sys.stderr, flush=True)
    return connect(self, address)
def resolving(host, *rest, **options):
    if host not in HERE:
        print("reached for", host, file=sys.stderr, flush=True)
    return resolve(host, *rest, **options)
socket.socket.connect, socket.getaddrinfo = connecting, resolving
from paretomerge.cli import main
main()
"""


@contextmanager
def explored(front: Path, **variables: str) -> Iterator[str]:
    """Its address, while it runs; it must end in peace, and must have called nobody."""
    command = [sys.executable, "-c", WATCHED, "explore", str(front), "--port", "0"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **variables}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as program:
        try:
            line = program.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line + program.stderr.read()
            yield line.split()[0]
        finally:
            program.terminate()
            said = program.communicate(timeout=60)[1]
    assert "Traceback" not in said and "reached for" not in said, said
