"""Persona vectors: directions of traits in the residual stream, extracted, chosen, watched and used to screen data
(Chen et al. 2025, arXiv 2507.21509). What is done with them in a forward is `grpo.steering`'s."""
