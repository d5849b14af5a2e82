"""Bayesian optimization with a Gaussian process."""

from bilevel.tasks.search_function.gaussian_process import GaussianProcess

METHOD = GaussianProcess
