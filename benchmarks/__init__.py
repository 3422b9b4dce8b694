"""Ours against the plain way, interleaved in one process: python -m benchmarks [loader] [step] [evaluation] [attack]."""
