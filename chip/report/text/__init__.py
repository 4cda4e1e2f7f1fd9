"""Results as tables and trees in the terminal."""
