"""What a million records cost: reading them, and an edit among them, against ten thousand.

    python -m benchmarks.many_records [--records 1000000] [--format jsonl|parquet] [--json FILE]

The records are generated, in text only, a hundred a patient. Each step runs in a process of its own; its seconds are of
the processor, and the memory is the process's peak.
"""
