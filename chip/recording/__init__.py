"""Between a run and the ledger: whom a run concerns by pseudonym, and what it did. Nothing of it goes into a model."""
