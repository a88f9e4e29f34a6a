"""Configs of open-muse as configs of jaxkit."""

from interop.open_muse.translate import convert_config, translate

__all__ = ["convert_config", "translate"]
