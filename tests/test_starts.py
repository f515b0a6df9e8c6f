"""What a run finds in its folder is the main rank's to read, and the others are told."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.distributed.world import World
from grpo.errors import DataError
from grpo.manifest import MANIFEST_FILE, write_manifest
from grpo.starts import TIER_COLUMNS, read_tiers
from tests.runs import grpo, opened_run, small_run_config, small_run_file
from tests.tier_manifest import profiled

UNIFORM: dict[str, Any] = {"sft": None, "curriculum": {"kind": "uniform"}}


class Rank(World):
    """One of two ranks; what the main rank says is kept and told to the other one, as `told`."""

    told: Any = None

    def broadcast(self, value: Any) -> Any:
        if self.is_main:
            Rank.told = value
        return Rank.told


def test_a_rank_that_does_not_see_the_manifest_yet_is_told_its_rows(tmp_path):
    with opened_run(small_run_config(tmp_path, **UNIFORM)) as run:
        path = run.folder.profile / MANIFEST_FILE
        path.parent.mkdir()
        write_manifest(path, profiled({"moderate": 3, "extreme": 2}))
        object.__setattr__(run, "world", Rank(rank=0, size=2, device=torch.device("cpu")))
        rows = read_tiers(run)
        assert {row["tier"] for row in rows.values()} == {"moderate", "extreme"}
        assert set(rows["extreme-1"]) == set(TIER_COLUMNS)
        path.unlink()
        object.__setattr__(run, "world", Rank(rank=1, size=2, device=torch.device("cpu")))
        assert read_tiers(run) == rows


@pytest.mark.parametrize(("content", "expected"), [(None, "no profile"), (b"PAR1 torn", "is no tier manifest")])
def test_every_rank_raises_what_is_wrong_with_the_manifest(tmp_path, content, expected):
    with opened_run(small_run_config(tmp_path, **UNIFORM)) as run:
        path = run.folder.profile / MANIFEST_FILE
        path.parent.mkdir()
        if content is not None:
            path.write_bytes(content)
        for rank in (0, 1):
            object.__setattr__(run, "world", Rank(rank=rank, size=2, device=torch.device("cpu")))
            with pytest.raises(DataError, match=expected):
                read_tiers(run)


@pytest.mark.parametrize("make", [lambda path: path.write_text("a file"), lambda path: None])
def test_a_folder_for_a_shared_store_that_cannot_be_is_refused_before_a_model_is_loaded(tmp_path, make, capsys):
    where = tmp_path / "in the way"
    make(where)
    name = where / "store" if where.exists() else Path("/proc/nothing")
    assert grpo("profile", small_run_file(tmp_path, **{"profile.folder": str(name), "sft": None})) == 2
    said = capsys.readouterr().err
    assert f"profile.folder = '{name}': no folder that can be written to" in said
