"""The one exception that the data layer raises for people to read."""


class DataError(Exception):
    """Data is missing, is not what it should be, or cannot be written; the message says what to do."""
