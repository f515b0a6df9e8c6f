"""What `grpo persona` does with a run and a trait, a file a command. docs/persona.md is the manual."""
