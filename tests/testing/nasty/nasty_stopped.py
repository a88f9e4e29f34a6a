import os
import signal

import pytest


@pytest.mark.timeout(2)
def test_stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)
