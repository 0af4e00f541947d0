"""What a researcher wants to see of features: read once from the warehouse, shown on a terminal, a page, in a file."""
