"""Extractive question answering on SQuAD v1.1 and v2.0 with full and clustered attention: `python -m squad_eval`."""
