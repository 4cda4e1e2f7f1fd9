"""Results as web pages: one HTML file each, with all that it needs inside it and no script."""
