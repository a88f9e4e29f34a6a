raise RuntimeError("the conftest says that this is no test file")
