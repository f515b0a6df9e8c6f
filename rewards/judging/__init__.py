"""The judge's parts: its options, the rubric, the wire, the reading of scores, the cache and the budget."""
