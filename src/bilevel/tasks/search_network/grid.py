"""Grid search."""

from bilevel.tasks.search_function.grid import Grid

METHOD = Grid
