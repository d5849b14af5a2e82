"""Quasi-random search."""

from bilevel.tasks.search_function.sobol import Sobol

METHOD = Sobol
