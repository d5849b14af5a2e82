"""Search for the metaparameters, the same in both protocols."""

from bilevel.tasks.distillation.search import TPE

METHOD = TPE
