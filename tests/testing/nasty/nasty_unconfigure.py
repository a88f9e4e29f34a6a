def test_passes_and_pytest_then_fails(pytestconfig):
    class Plugin:
        def pytest_unconfigure(self):
            raise RuntimeError("no end in peace")

    pytestconfig.pluginmanager.register(Plugin())
