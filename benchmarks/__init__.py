"""Speed and memory of hypergradients beside other libraries: `python -m benchmarks`."""
