"""`grpo persona sweep`: what steering by a trait's vector does, by block and coefficient, and which of them to take.

Each cell is measured on the evaluation questions, with accuracy on the run's validation problems beside it, under the
vector and under a random direction of the same norm; what is not above the latter is no effect of the trait
(arXiv 2507.21509 chooses the block so; the control is ours). Cells are written down as they come."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from grpo.errors import ConfigError, Interrupted
from grpo.folder import named_disk_errors, write_json, write_text
from grpo.persona.asking import judge_of
from grpo.persona.heat_map import heat_map
from grpo.persona.kept import KeptRows
from grpo.persona.vectors import Over, PersonaVectors, random_like, save
from grpo.persona_commands.extract import put_in_place
from grpo.persona_commands.loading import Transfer, check_block, check_model, find_vectors, trait_of, transfer
from grpo.persona_commands.measure import Measured, Meter
from grpo.starts import Run, print_of
from grpo.steering import Steering

COEFFICIENTS = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)
MOST_BLOCKS = 8
"""Of a deeper model so many blocks, evenly spaced, are tried where none are named."""
MAX_DROP = 0.1
"""Of coherence and accuracy, absolute, that a recommended steering may cost."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried."""

    blocks: tuple[int, ...]
    coefficients: tuple[float, ...]
    over: Over
    num_problems: int  # validation problems that accuracy is taken on; 0: none


@dataclass(frozen=True, slots=True)
class Cell:
    """One block and coefficient: under the vector and under a random direction."""

    block: int
    coefficient: float
    steered: Measured
    random: Measured

    @property
    def effect(self) -> float:
        """Trait rate above what a random direction gives."""
        return self.steered.rate.value - self.random.rate.value


@dataclass(frozen=True, slots=True)
class Swept:
    """A whole sweep."""

    grid: Grid
    plain: Measured  # unsteered
    cells: tuple[Cell, ...]

    def recommended(self, *, adds: bool = True) -> Cell | None:
        """The cell with the largest effect (or with `adds` off the largest negative one) of those that cost at most
        MAX_DROP of coherence and of accuracy; of equals the one that moves least. None where none has an effect."""
        sign = 1 if adds else -1
        allowed = [
            cell
            for cell in self.cells
            if cell.coefficient * sign > 0 and cell.effect * sign > 0 and not self._costs(cell)
        ]
        return max(allowed, key=lambda cell: (sign * cell.effect, -abs(cell.coefficient)), default=None)

    def _costs(self, cell: Cell) -> bool:
        if cell.steered.coherent < self.plain.coherent - MAX_DROP:
            return True
        before, after = self.plain.accuracy, cell.steered.accuracy
        return before is not None and after is not None and after.value < before.value - MAX_DROP


def run_sweep(
    run: Run,
    name: str,
    *,
    checkpoint: str,
    blocks: Sequence[int],
    coefficients: Sequence[float],
    over: Over,
    num_problems: int,
    allow_other: bool,
) -> None:
    """The command: measure every cell, write table and picture, and the recommendation into the vectors' file.

    Raises ConfigError for a grid that cannot be and for vectors of another model, unless they are allowed."""
    path, vectors = find_vectors(run, name)
    policy = put_in_place(run, checkpoint)
    is_own = check_model(run, vectors, allow_other=allow_other)
    grid = Grid(
        blocks=tuple(blocks) or default_blocks(vectors.origin.num_blocks),
        coefficients=tuple(coefficients) or COEFFICIENTS,
        over=over,
        num_problems=num_problems,
    )
    carried = None if is_own else transfer(run, vectors)
    for line in [] if carried is None else carried.lines():
        run.console.say(line)
    stem = f"{path.stem}_sweep" if checkpoint == "start" else f"{path.stem}_on_{policy.name}_sweep"
    folder = run.folder.path / "persona"
    swept = sweep(run, vectors, grid, keep_in=folder / f"{stem}.jsonl")
    if run.world.is_main:
        _write(swept, vectors, path, folder / stem, carried=carried, recommends=is_own)
        run.console.print(table_of(swept))
    for line in _verdict(swept):
        run.console.say(line)
    run.console.say(f"sweep: {folder / stem}.json and .svg" + (f"; the recommendation is in {path}" if is_own else ""))


def default_blocks(num_blocks: int) -> tuple[int, ...]:
    """All blocks of a shallow model, MOST_BLOCKS evenly spaced ones of a deeper one, the last included."""
    if num_blocks <= MOST_BLOCKS:
        return tuple(range(num_blocks))
    return tuple(round((place + 1) * num_blocks / MOST_BLOCKS) - 1 for place in range(MOST_BLOCKS))


def sweep(run: Run, vectors: PersonaVectors, grid: Grid, *, keep_in: Path) -> Swept:
    """Measure the policy as it stands in every cell; the same on every rank.

    `keep_in` takes each cell as it comes, and cells that are there already are not measured again. Raises ConfigError
    for coefficients or blocks that cannot be, Interrupted between two cells where the run was asked to end."""
    _check(grid)
    directions = {block: check_block(vectors, block, over=grid.over)[1] for block in grid.blocks}
    meter = Meter(run, trait_of(vectors), num_problems=grid.num_problems)
    rests_on = _rests_on(run, vectors, grid)  # on every rank: it asks all of them
    rows = KeptRows(keep_in, rests_on=rests_on) if run.world.is_main else None
    known: dict[tuple[int, float], Cell] = run.world.broadcast({} if rows is None else _cells_of(rows))
    plain = meter.measure(None)
    cells = []
    for block in grid.blocks:
        random = random_like(directions[block], seed=block)
        for coefficient in grid.coefficients:
            cell = known.get((block, coefficient))
            if cell is None:
                if run.should_stop():
                    raise Interrupted(f"stopped in the sweep; {keep_in} has what is measured: give the command again")
                cell = Cell(
                    block,
                    coefficient,
                    steered=meter.measure(Steering({block: directions[block]}, coefficient=coefficient)),
                    random=meter.measure(Steering({block: random}, coefficient=coefficient)),
                )
                if rows is not None:
                    rows.add([_row(cell)])
            cells.append(cell)
            run.console.say(
                f"sweep: block {block}, coefficient {coefficient:g}: trait {cell.steered.rate.value:.2f}, random "
                f"{cell.random.rate.value:.2f}"
            )
    return Swept(grid=grid, plain=plain, cells=tuple(cells))


def table_of(swept: Swept) -> Table:
    """Every cell, the recommended one marked."""
    chosen = swept.recommended()
    table = Table("block", title="steering on the evaluation questions", title_justify="left")
    for column in ("α", "rate", "95 %", "random", "coherent", "accuracy", "random's"):
        table.add_column(column, justify="right")
    plain = swept.plain
    table.add_row("–", "0", f"{plain.rate.value:.3f}", _interval(plain), "–", f"{plain.coherent:.2f}", _accuracy(plain))
    for cell in swept.cells:
        table.add_row(
            f"{cell.block}{' ←' if cell is chosen else ''}",
            f"{cell.coefficient:g}",
            f"{cell.steered.rate.value:.3f}",
            _interval(cell.steered),
            f"{cell.random.rate.value:.3f}",
            f"{cell.steered.coherent:.2f}",
            _accuracy(cell.steered),
            _accuracy(cell.random),
        )
    return table


def picture_of(swept: Swept) -> str:
    """Trait rate under the vector, under a random direction, and accuracy, by block and coefficient."""
    grid, chosen = swept.grid, swept.recommended()
    by_place = {(cell.block, cell.coefficient): cell for cell in swept.cells}
    ordered = [[by_place[block, coefficient] for coefficient in grid.coefficients] for block in grid.blocks]
    panels: list[tuple[str, list[list[float | None]]]] = [
        ("trait rate", [[cell.steered.rate.value for cell in row] for row in ordered]),
        ("trait rate, random direction", [[cell.random.rate.value for cell in row] for row in ordered]),
    ]
    if swept.plain.accuracy is not None:
        accuracy = [[cell.steered.accuracy.value if cell.steered.accuracy else None for cell in row] for row in ordered]
        panels.append((f"accuracy ({swept.plain.accuracy.value:.2f} unsteered)", accuracy))
    place = None if chosen is None else (grid.blocks.index(chosen.block), grid.coefficients.index(chosen.coefficient))
    return heat_map(
        panels,
        rows=[f"block {block}" for block in grid.blocks],
        columns=[f"{coefficient:g}" for coefficient in grid.coefficients],
        marked=place,
    )


def _check(grid: Grid) -> None:
    for coefficient in grid.coefficients:
        if coefficient == 0 or grid.coefficients.count(coefficient) > 1:
            raise ConfigError(
                f"--coefficients: {coefficient:g} stands there twice or is 0; 0 is measured always: name each once"
            )
    for block in grid.blocks:
        if grid.blocks.count(block) > 1:
            raise ConfigError(f"--blocks: {block} stands there twice; name each once")


def _rests_on(run: Run, vectors: PersonaVectors, grid: Grid) -> dict[str, Any]:
    config = run.config
    return {
        "policy": print_of(run).content,
        "vectors": [vectors.origin.policy, vectors.origin.num_positive, float(vectors.of[grid.over].double().sum())],
        "over": grid.over,
        "questions": vectors.origin.definition,
        "judge": judge_of(trait_of(vectors), config).model_dump(mode="json", include={"name", "options"}),
        "persona": config.persona.model_dump(mode="json", exclude={"judge", "min_pairs"}),
        "problems": grid.num_problems,
        "reward": config.reward.model_dump(mode="json", include={"name", "options", "success_threshold"}),
        "seed": config.run.seed,
    }


def _row(cell: Cell) -> dict[str, Any]:
    sides = {"steered": cell.steered.as_row(), "random": cell.random.as_row()}
    return {"block": cell.block, "coefficient": cell.coefficient, **sides}


def _cells_of(rows: KeptRows) -> dict[tuple[int, float], Cell]:
    return {
        (row["block"], row["coefficient"]): Cell(
            row["block"],
            row["coefficient"],
            steered=Measured.from_row(row["steered"]),
            random=Measured.from_row(row["random"]),
        )
        for _, row in rows
    }


def _write(
    swept: Swept,
    vectors: PersonaVectors,
    path: Path,
    stem: Path,
    *,
    carried: Transfer | None,
    recommends: bool,
) -> None:
    adds, removes = swept.recommended(), swept.recommended(adds=False)
    with named_disk_errors(stem, then="then sweep again, which measures nothing twice"):
        write_json(
            stem.with_name(f"{stem.name}.json"),
            {
                "trait": vectors.origin.trait,
                "over": swept.grid.over,
                "unsteered": swept.plain.as_row(),
                "cells": [_row(cell) for cell in swept.cells],
                "adds": adds and {"block": adds.block, "coefficient": adds.coefficient},
                "removes": removes and {"block": removes.block, "coefficient": removes.coefficient},
                "transfer": carried and carried.as_json(),
            },
        )
        write_text(stem.with_name(f"{stem.name}.svg"), picture_of(swept))
        if recommends and adds is not None:
            chosen = replace(vectors, recommended_block=adds.block, recommended_coefficient=adds.coefficient)
            save(chosen, path)


def _verdict(swept: Swept) -> list[str]:
    lines = []
    for word, adds in (("to add the trait", True), ("to remove it", False)):
        cell = swept.recommended(adds=adds)
        lines.append(
            f"{word}: no cell has an effect at a cost of at most {MAX_DROP:g} in coherence and accuracy"
            if cell is None
            else f"{word}: block {cell.block}, coefficient {cell.coefficient:g}: rate {cell.steered.rate.value:.2f} "
            f"(unsteered {swept.plain.rate.value:.2f}, random direction {cell.random.rate.value:.2f})"
        )
    return lines


def _interval(measured: Measured) -> str:
    return f"{measured.rate.low:.2f}–{measured.rate.high:.2f}"


def _accuracy(measured: Measured) -> str:
    return "–" if measured.accuracy is None else f"{measured.accuracy.value:.3f}"
