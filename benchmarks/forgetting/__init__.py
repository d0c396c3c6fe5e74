"""The parts of `benchmarks/forget.py`: what is forgotten, by which methods, how it is measured, and the table."""
