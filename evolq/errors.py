"""The one exception for bad input, shown to the user as it is, and words of other errors."""

from importlib.util import find_spec


class InputError(ValueError):
    """Input that cannot be used. The message says what was given, what was wanted and what to do.

    Command lines print it as one line on standard error and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """Return what an error says in one line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require(package: str, extra: str, purpose: str) -> None:
    """Do nothing if the optional `package` is installed.

    Raises:
        InputError: if it is not; the message names `purpose` and the extra that brings it.
    """
    if find_spec(package) is None:
        raise InputError(
            f"{purpose} needs {package}, which is not installed: pip install 'evolq[{extra}]'"
        )
