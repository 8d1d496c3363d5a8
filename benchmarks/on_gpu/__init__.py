"""What `benchmarks/gpu.py` runs on a GPU: its steps, and the parts that are measured."""
