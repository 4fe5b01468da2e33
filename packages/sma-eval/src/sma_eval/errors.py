"""The exception tree of the laboratory: what a user can mend, under one root."""


class StudyError(Exception):
    """A study cannot be read or run; the message says what is wrong, where, and how to mend it."""


class FieldError(StudyError, ValueError):
    """A field of a study file is missing, unknown or out of range; the message names it."""


class FolderError(StudyError, RuntimeError):
    """A study folder is absent, damaged, in use, or belongs to another study."""


class TrackingError(StudyError, RuntimeError):
    """The tracking store cannot be opened."""


def first_line(error: Exception) -> str:
    """Return what an error of another library says, in a line; its kind if it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
