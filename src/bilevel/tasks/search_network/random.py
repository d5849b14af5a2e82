"""Random search."""

from bilevel.tasks.search_function.random import Random

METHOD = Random
