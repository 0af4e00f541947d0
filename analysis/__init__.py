"""What is computed from a filled warehouse: EFAS statistics and their significance."""
