"""What is known of one problem's attempts while it is profiled: outcome and length, in attempt order."""

from array import array
from collections.abc import Sequence

WRONG, RIGHT, WITHOUT_VALUE, UNSEEN = range(4)


class Attempts:
    """The attempts of one problem by index. They may arrive in any order, each once."""

    __slots__ = ("codes", "num_recorded", "num_tokens")

    def __init__(self) -> None:
        self.codes = bytearray()
        self.num_recorded = 0
        self.num_tokens = array("I")

    def add(self, first_attempt: int, correct: Sequence[bool | None], num_tokens: Sequence[int]) -> None:
        """Write the outcomes of attempts first_attempt, first_attempt + 1, ... (None: the verifier gave no value).

        Raises ValueError, and writes nothing, when the lengths differ, a number is negative or an attempt is known."""
        if len(correct) != len(num_tokens):
            raise ValueError(f"got {len(correct)} outcomes and {len(num_tokens)} token counts: one of each an attempt")
        if first_attempt < 0 or any(tokens < 0 for tokens in num_tokens):
            raise ValueError(f"first_attempt={first_attempt} and token counts must not be negative")
        end = first_attempt + len(correct)
        known = self.codes[first_attempt:end]
        if known.count(UNSEEN) != len(known):
            raise ValueError(f"attempts {first_attempt}..{end - 1} hold one that was recorded before")
        if end > len(self.codes):
            num_added = end - len(self.codes)
            self.codes.extend(bytes([UNSEEN]) * num_added)
            self.num_tokens.extend([0] * num_added)
        self.codes[first_attempt:end] = bytes(WITHOUT_VALUE if right is None else int(right) for right in correct)
        self.num_recorded += len(correct)
        self.num_tokens[first_attempt:end] = array("I", num_tokens)

    def merge(self, first_attempt: int, correct: Sequence[bool | None], num_tokens: Sequence[int]) -> None:
        """As `add`, but what is known already may come again, if it says the same.

        Raises ValueError, and writes nothing, when it says otherwise, and as `add` for the rest."""
        known = self.codes[max(first_attempt, 0) : first_attempt + len(correct)]
        if known.count(UNSEEN) == len(known):
            self.add(first_attempt, correct, num_tokens)
            return
        given = Attempts()
        given.add(0, correct, num_tokens)
        unseen = []
        for offset, attempt in enumerate(range(first_attempt, first_attempt + len(correct))):
            if attempt >= len(self.codes) or self.codes[attempt] == UNSEEN:
                unseen.append(offset)
            elif (self.codes[attempt], self.num_tokens[attempt]) != (given.codes[offset], given.num_tokens[offset]):
                raise ValueError(f"attempt {attempt} is recorded twice, with different outcomes or lengths")
        for offset in unseen:
            self.add(first_attempt + offset, correct[offset : offset + 1], num_tokens[offset : offset + 1])

    @property
    def num_without_value(self) -> int:
        """Recorded attempts of which the verifier gave no value."""
        return self.codes.count(WITHOUT_VALUE)

    @property
    def total_tokens(self) -> int:
        """Tokens of all recorded attempts."""
        return sum(self.num_tokens)

    @property
    def first_unseen(self) -> int:
        """The lowest attempt index without a record."""
        gap = self.codes.find(UNSEEN)
        return len(self.codes) if gap < 0 else gap

    @property
    def gap_length(self) -> int | None:
        """How many attempts are unseen from `first_unseen` up to the next seen one; None when none follows."""
        start = self.first_unseen
        for length, code in enumerate(self.codes[start:]):
            if code != UNSEEN:
                return length
        return None

    def settled(self) -> bytes:
        """Outcomes with a value, in attempt order, up to the first unseen attempt.

        What lies behind a gap is not used yet: the lowest right attempt could still be in the gap."""
        return bytes(self.codes[: self.first_unseen]).replace(bytes([WITHOUT_VALUE]), b"")

    def attempts_until(self, num_with_value: int) -> int:
        """Attempts, from the lowest on, that hold this many rollouts with a value: all before a gap if too few do."""
        found = 0
        for attempt, code in enumerate(self.codes[: self.first_unseen]):
            found += code != WITHOUT_VALUE
            if found == num_with_value:
                return attempt + 1
        return self.first_unseen
