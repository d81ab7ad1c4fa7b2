"""The exceptions that a user's mistake raises."""


class UserError(ValueError):
    """The user's mistake, told in one clear line; the command line prints that line and exits with 2."""


class Stopped(UserError):
    """A fit was asked to stop (Ctrl-C, SIGTERM); its state is saved."""
