"""Measures the layers of a model, or the same training compiled and op by op; run with --help."""

import argparse

parser = argparse.ArgumentParser(description="x")
