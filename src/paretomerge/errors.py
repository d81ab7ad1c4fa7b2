"""The exceptions that a user's mistake raises."""


class UserError(ValueError):
    """The user's mistake, told in one clear line; the command line prints that line and exits with 2."""
