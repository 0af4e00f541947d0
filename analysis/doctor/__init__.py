"""`elw doctor`: this machine, its cache and a warehouse in; what is well, what to know and what to mend out."""
