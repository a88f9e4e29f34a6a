import signal
import time

import pytest


@pytest.mark.timeout(2)
def test_ignores_every_signal_it_can():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)
