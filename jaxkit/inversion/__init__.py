"""Textual inversion's words: what they are written as, which rows they begin with, how long those may grow."""
