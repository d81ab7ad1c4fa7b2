"""The exceptions that a user's mistake raises."""

import signal


class UserError(ValueError):
    """The user's mistake, told in one clear line; the command line prints that line and exits with 2."""


class Stopped(UserError):
    """A fit was asked to stop (Ctrl-C, SIGTERM, SIGHUP); its state is saved."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        """``number``: the signal."""
        super().__init__(message)
        self.number = number
