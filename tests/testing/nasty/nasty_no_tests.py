"""Has the name of a test file, and no tests."""
