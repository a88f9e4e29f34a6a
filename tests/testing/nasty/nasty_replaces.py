"""Replaces what a runner might lean on, and puts nothing back."""

import builtins
import json
import os
import sys
import time


def test_replaces_functions():
    time.time = time.monotonic = lambda: 0.0
    json.dumps = builtins.open = os.open = os.write = lambda *_: None
    sys.stdout = sys.stderr = None


def test_after():
    raise AssertionError("seen all the same")
