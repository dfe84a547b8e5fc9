"""What the verbs of the command line do: they compose the rooms, and print."""

from __future__ import annotations


def describe(error: ValueError | OSError) -> str:
    """One line for a user; what the system reports begins with the file that it is about, as our own messages do."""
    if isinstance(error, OSError) and error.filename is not None:
        what = "is not a folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        return f"{error.filename}: {what}"
    return " ".join(str(error).splitlines()) or type(error).__name__
