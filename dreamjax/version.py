"""The version of dreamjax, which checkpoints record."""

__version__ = "0.2.0"
