"""Every named way a run can end, each with the exit code that `grpo` returns for it.

A `RunError` is something that a user, a machine or a reward caused: its message names the place, the value, the rule
and the remedy, and `grpo.cli` prints it without a traceback. Anything else that escapes is our bug (exit code 1)."""

OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")
"""What torch's RuntimeErrors say where memory is short: its CPU allocator, a device's driver, cuBLAS and cuDNN."""


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error without a type of its own is one of memory."""
    return any(said in str(error) for said in OUT_OF_MEMORY)


class RunError(Exception):
    """A failure with a name. `exit_code` is what the process returns."""

    exit_code = 1


class ConfigError(RunError, ValueError):
    """The config, the command line or a file it names is wrong."""

    exit_code = 2


class DataError(RunError, ValueError):
    """Rows cannot become problems: missing file or column, nothing left, a prompt that does not fit."""

    exit_code = 3


class HubError(DataError):
    """A hub's data set cannot be read from here: it is not there, or there is no way to it."""


class RunFolderError(RunError):
    """The run's folder is in use, holds another run, or holds a phase that neither --resume nor --fresh names."""

    exit_code = 4


class GateError(RunError):
    """The cold start ended below the pass@1 that its gate asks for."""

    exit_code = 5


class RewardError(RunError):
    """More verifier failures than `reward.max_error_fraction` allows."""

    exit_code = 6


class DivergenceError(RunError):
    """Too many updates in a row had a non-finite loss or gradient."""

    exit_code = 7


class OutOfMemoryError(RunError):
    """The device ran out of memory; the message says which number to lower."""

    exit_code = 8


class DiskError(RunError):
    """A write failed (disk full, quota, permissions); what was written before is intact."""

    exit_code = 9


class CheckpointError(RunError):
    """No checkpoint, a torn or altered one, or one of another config."""

    exit_code = 10


class ReplayError(RunError):
    """A rollout that was drawn again is not the one that the run recorded; what differs was printed."""

    exit_code = 11


class StalledError(RunError):
    """A phase made no progress, or a rank of the run is gone or silent: every rank ends with the first cause."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: what may go well when it is tried again


class Interrupted(RunError):
    """Ctrl-C or SIGTERM: the run saved a checkpoint and says how to go on."""

    exit_code = 130
