"""The one exception that the command line shows as a message instead of a traceback."""


class MedpclipError(ValueError):
    """Something the user can mend.

    The message is one line that names the file (relative to the folder the user gave), the key, and the remedy.
    Bugs of ours raise ordinary exceptions or fail assertions instead, and keep their traceback.
    """
