"""How a completion's choice is read: the text, the phrases of many languages, and which choice they name."""
