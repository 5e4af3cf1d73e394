"""Errors that a user can act on: one sentence of what was found, and what to do about it."""


class UserError(Exception):
    """Bad input. The command line prints its text alone and exits with 2; nothing was published."""
