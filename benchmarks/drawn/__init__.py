"""Worlds and models that nobody chose: everything about them is drawn from a seed.

Settings and code are chosen on even seeds and reported on odd ones.
"""
