"""What the code reward reads: code in a completion, tests in a row, what a program printed."""
