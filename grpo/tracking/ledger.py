"""The bill of a run: what every token was drawn for, from what the run recorded.

One row a purpose. A token stands in one row, so the rows add up to all that the policy has drawn; what the profile's
groups saved is said beside them. A resume counts nothing twice: metrics and evaluations are read as they stand."""

from dataclasses import dataclass

from grpo.manifest import MANIFEST_FILE
from grpo.tracking.recorded_run import RecordedRun, is_number, read_profile


@dataclass(frozen=True, slots=True)
class Bill:
    """Tokens that one purpose cost, and a word on what came of them."""

    purpose: str
    tokens: int
    note: str


def ledger(run: RecordedRun) -> list[Bill]:
    """What was drawn, in the order in which a run comes to it; purposes that cost nothing are left out."""
    sampled, kept = _total(run, "sampling/tokens"), _total(run, "tokens/kept")
    refills, reused = _total(run, "tokens/refill"), _total(run, "tokens/reused")
    saved = f"; {reused:,} more came from the profile's own groups" if reused else ""
    bills = [
        Bill("cold start: looks at the gate", _of_events(run, "gate"), "validation problems, until the gate opened"),
        Bill("profile", 0 if run.profile is None else run.profile.num_tokens, "labels of the training problems"),
        Bill("practice: trained on", kept, f"groups that teach something{saved}"),
        Bill(
            "practice: dropped",
            sampled - kept,
            f"groups without variance, or past the step's number; refills drew {refills:,} of all practice",
        ),
        Bill("temperature", _total(run, "tokens/temperature"), "evaluations that decisions rest on"),
        Bill("profiles on the way", _total(run, "tokens/reprofile"), "labels for the policy as it stood"),
        Bill("vectors on the way", _total(run, "tokens/persona"), "traits extracted from the policy as it stood"),
        Bill("validation", _total(run, "tokens/validation"), "the best checkpoint, and the early stop"),
        Bill("final evaluation", sum(_evaluated(evaluation) for evaluation in run.evaluations), "every set and policy"),
        Bill("final evaluation: tiers", _of_heldout_profile(run), "labels of the held-out problems"),
    ]
    return [bill for bill in bills if bill.tokens]


def _total(run: RecordedRun, name: str) -> int:
    return round(sum(value for _, value in run.curve(name)))


def _of_events(run: RecordedRun, kind: str) -> int:
    tokens = [event.get("tokens") for event in run.events if event.get("event") == kind]
    return round(sum(number for number in tokens if is_number(number)))


def _of_heldout_profile(run: RecordedRun) -> int:
    manifest = read_profile(run.folder / "profile" / "heldout" / MANIFEST_FILE, notes=run.notes)
    return 0 if manifest is None else manifest.num_tokens


def _evaluated(evaluation: dict[str, object]) -> int:
    tokens = evaluation.get("num_tokens")
    return round(tokens) if is_number(tokens) else 0
