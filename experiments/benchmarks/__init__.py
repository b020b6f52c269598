"""Time, memory and throughput of this package beside the PyTorch peers: `python -m experiments.benchmarks`."""
