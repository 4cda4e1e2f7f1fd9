"""Inputs that nobody would give on purpose, and what becomes of each: right values, or one line and exit code 2.

A kind of input has a file, and a new input is one line in it.
"""
