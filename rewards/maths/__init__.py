"""How the mathematics reward reads and compares answers; math-verify itself is asked in rewards.math_answer."""
