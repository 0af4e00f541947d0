"""The formulas: sums taken in the stream, and what finish makes of them once the stream has passed."""
