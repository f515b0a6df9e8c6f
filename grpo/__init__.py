"""A KL-free GRPO trainer: samples groups, asks `rewards`, tells `curricula`, updates the policy.

The floors, from the top: `cli` wires; `recipe`, `trainer`, `sft`, `profiling`, `evaluation` are the phases of a run;
`replay`, `check`, `probe`, `scoring` look at one; `rollout`, `sampling`, `tracking` are what they use; `distributed`,
`policy`, `batch`, `data`, `chat`, `checkpoint` and their neighbours hold ranks, models and files; `losses`,
`advantages`, `logprobs` are arithmetic on tensors; `types`, `config`, `seeds`, `errors` know no torch."""
