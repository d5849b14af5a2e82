"""The errors that are meant for people: commands print their message and nothing else."""


class UserError(Exception):
    """Something outside the code is wrong; the message says which file, key or value, what was expected, what to do."""


class FileError(UserError):
    """A file cannot be written."""


class DataError(UserError):
    """Data is missing or is not what it should be; the message says what to do."""
