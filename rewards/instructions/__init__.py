"""The reward `instructions`: verifiable instructions of IFEval's kind, and checkers of a user's own.

`reward` reads the problem and judges, `registry` names the checkers, `arguments` reads what they take, `wording`,
`counting` and `layout` are the checkers, `own` loads those of a user."""

from rewards.instructions.reward import InstructionsOptions, build_instructions, prepare_instructions

__all__ = ["InstructionsOptions", "build_instructions", "prepare_instructions"]
