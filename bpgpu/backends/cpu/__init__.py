"""The compiled engine of the CPU, and what it shares with other code there: BLAS and threads."""
