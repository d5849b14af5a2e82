"""The exception of the data layer."""

from bilevel.errors import UserError


class DataError(UserError):
    """Data is missing or is not what it should be; the message says what to do."""
