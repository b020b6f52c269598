"""Time, memory and throughput of this package, against its peers in PyTorch: `python -m experiments.benchmarks`."""
