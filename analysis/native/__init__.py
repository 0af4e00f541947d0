"""What an energy transformer's own landscape does with a run: where tokens settle, and what a feature does to that."""
