"""Drawing completions: the protocol that every engine follows, and the native engine.

A sampler knows token ids and noise keys; it knows no problem, no reward and no text but stop strings."""
