"""Between a run and the ledger: whom a run concerns by pseudonym, and what it did; and the file of a guard.

Nothing of it goes into a model.
"""
