import os
import signal


def test_is_killed_as_the_kernel_kills_when_memory_runs_out():
    os.kill(os.getpid(), signal.SIGKILL)
