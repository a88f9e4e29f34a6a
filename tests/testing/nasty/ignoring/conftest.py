collect_ignore = ["nasty_ignored.py"]
