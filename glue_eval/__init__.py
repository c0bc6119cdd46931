"""The GLUE tasks and the AX diagnostic with full and clustered attention: `python -m glue_eval`."""
