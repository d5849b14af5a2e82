"""Tree-structured Parzen estimator."""

from bilevel.tasks.search_function.tpe import TPE

METHOD = TPE
