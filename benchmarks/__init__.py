"""What is measured against others. Each script writes one file below ``results/``; none is a test.

Run them from the repository's root, such as ``python -m benchmarks.training --data-root DIR``.
"""
