"""The regression runner: a plan of fresh pytest processes, watched from outside; and numeric baselines.

The runner is the standard library; :mod:`jaxkit.testing.worker` alone imports pytest. See docs/testing.md.
"""
