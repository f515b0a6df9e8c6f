"""Which reward judges: a built-in by name or a function in a user's file, with options. Plain data that travels to
worker processes; building a verifier from it is `rewards.build`'s and `rewards.user`'s work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, init=False)
class RewardSpec:
    """A built-in reward (`name`) or a user's own (`file` and `function`), with its options.

    Hashable and picklable: the options are kept as canonical JSON. Raises ValueError unless exactly one of the two
    is given, or when the options are not a mapping that JSON can hold."""

    name: str
    file: str | None
    function: str | None
    options_json: str

    def __init__(
        self,
        name: str = "",
        *,
        file: str | None = None,
        function: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if bool(name) == bool(file) or bool(file) != bool(function):
            raise ValueError(
                f"a reward is either a built-in name or a file with a function; got name={name!r}, file={file!r}, "
                f"function={function!r}"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "file", file)
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "options_json", _canonical_json(options or {}, title=self.title))

    @property
    def options(self) -> dict[str, Any]:
        """A fresh dict of the options."""
        options: dict[str, Any] = json.loads(self.options_json)
        return options

    @property
    def title(self) -> str:
        """What messages call this reward."""
        return self.name or f"{self.function} in {self.file}"


def _canonical_json(options: Mapping[str, Any], *, title: str) -> str:
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"reward {title}: options = {options!r}: must be a mapping from option names to values")
    try:
        return json.dumps(dict(options), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {title}: options = {options!r}: must hold plain JSON values ({error})") from error
