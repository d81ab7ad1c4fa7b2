"""The command line. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

import typer

from paretomerge.cli.check import check
from paretomerge.cli.demo import demo
from paretomerge.cli.evaluate import evaluate
from paretomerge.cli.explore import explore
from paretomerge.cli.fit import fit
from paretomerge.cli.info import info
from paretomerge.cli.merge import merge
from paretomerge.cli.methods import methods
from paretomerge.cli.pick import pick
from paretomerge.cli.relocate import relocate
from paretomerge.cli.report import report
from paretomerge.cli.select import select
from paretomerge.cli.terminal import say
from paretomerge.cli.verify import verify
from paretomerge.errors import Stopped, UserError
from paretomerge.io.signals import Ended, ended_by_signals

app = typer.Typer(
    help="Merge fine-tuned models into one for every preference over their tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SIGNAL = 128
"""The exit code of a program that a signal ended is this and the signal's number: 130 after Ctrl-C, 143 after SIGTERM."""
_NO_MEMORY = "not enough memory: raise the limit (ulimit -v, control group), or fit smaller batches"

for _command in (
    check,
    merge,
    fit,
    pick,
    evaluate,
    select,
    info,
    explore,
    report,
    methods,
    relocate,
    verify,
    demo,
):
    app.command()(_command)


def main() -> None:
    """The entry point: a user's mistake is one line on standard error and exit code 2, never a traceback."""
    # idle OpenMP threads that spin would take the cores from whatever else runs, ourselves included
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of another encoding: escapes instead of a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    with ended_by_signals():
        _run()


def _run() -> NoReturn:
    ended = 0
    code: Any = 0
    try:
        code = app(standalone_mode=False)
    except Stopped as stopped:
        say(stopped)
        sys.exit(_SIGNAL + stopped.number)
    except UserError as error:
        _fail(str(error))
    except Ended as error:
        ended = error.number
    except (KeyboardInterrupt, EOFError, typer.Abort):
        ended = signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # the system's no: permissions, a full disk
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        _fail(_NO_MEMORY)
    except RecursionError:
        _fail("a file's JSON or YAML is nested too deeply: is it what it seems to be?")
    except Exception as error:
        if "can't allocate memory" in str(error) or "unable to mmap" in str(error):  # torch's way to say it
            _fail(_NO_MEMORY)
        # a mistake in the flags: click's exception, wherever this version of typer keeps click
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():
            _fail(message)
        code = 2  # no command, and the help has been shown
    if ended or code == _SIGNAL + signal.SIGINT:  # typer's own code for Ctrl-C
        with suppress(OSError):  # the terminal may be gone
            say("stopped")
        sys.exit(_SIGNAL + (ended or signal.SIGINT))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    say(f"error: {' '.join(message.split())}")
    sys.exit(2)
