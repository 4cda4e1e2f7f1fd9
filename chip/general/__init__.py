"""What a model knows beside the records: collected, protected, and compared before and after an edit."""
