"""The version of dreamjax, which checkpoints record."""

__version__ = "0.1.0"
