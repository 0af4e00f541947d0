"""What is fitted on a corpus: SAEs and tuned lenses, from residuals of its training documents."""
