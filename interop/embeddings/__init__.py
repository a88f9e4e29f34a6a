"""Files of learned words of textual inversion: ``reading.read(path)``, ``writing.write(embedding, path, format)``."""
