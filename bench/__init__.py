"""The benchmarks: `python -m bench` in a clone. README.md tells more."""
