"""The error that a user can fix."""


class UserError(Exception):
    """Something given from outside is wrong. The message says what, what was expected, and what to do.

    The command line prints only the message. Every other exception is a defect and keeps its traceback.
    """
