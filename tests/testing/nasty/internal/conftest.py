def pytest_runtest_call(item):
    if item.name == "test_breaks_the_plugin":
        item.session.shouldstop = "a plugin stops the session"


def pytest_runtest_logreport(report):
    if report.nodeid.endswith("test_breaks_the_reporting") and report.when == "call":
        raise RuntimeError("a plugin fails while it reports")
