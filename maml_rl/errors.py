"""The one error that is the user's to mend."""


class UserError(Exception):
    """Something given from outside is wrong: one sentence on what, what was expected, and what to do.

    The command line prints the sentence alone; everything else is a defect and keeps its traceback.
    """
