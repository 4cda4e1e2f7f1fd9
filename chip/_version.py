"""The version, where everything can import it without a circle."""

__version__ = "0.1.0"
