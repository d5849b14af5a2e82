"""Search for the metaparameters, as for the synthetic data."""

from bilevel.tasks.distillation.search import TPE

METHOD = TPE
