"""Differentiable search for architectures: spaces of cells, their regularizers over domains, and what is chosen."""

from bilevel.architecture.regularizers import centroid_divergence, contrastive, pairwise_divergence
from bilevel.architecture.space import Choice, Edge, Genotype, Mixture, Space, shared_choices

__all__ = [
    "Choice",
    "Edge",
    "Genotype",
    "Mixture",
    "Space",
    "centroid_divergence",
    "contrastive",
    "pairwise_divergence",
    "shared_choices",
]
