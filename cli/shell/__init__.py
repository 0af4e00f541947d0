"""`elw sql` on a terminal: lines that a user types in, rows and sentences out, until Ctrl-D."""
