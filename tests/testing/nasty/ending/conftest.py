import os


def pytest_sessionfinish(session):
    if not session.config.option.collectonly:
        os._exit(3)
