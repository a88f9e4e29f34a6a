raise RuntimeError("norecursedirs says that no tests are here")
