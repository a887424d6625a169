"""The one exception for bad input: its message is shown to the user as it is."""


class InputError(ValueError):
    """Input that cannot be used. The message says what was given, what was wanted and what to do.

    Command lines print it as one line on standard error and exit with code 2.
    """
