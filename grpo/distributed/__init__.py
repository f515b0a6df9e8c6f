"""Several processes as one run: who is there (`world`), who does what (`plan`), where the policy lies (`strategy`)."""
