"""Features edited, what that did measured, and what had predicted it."""
