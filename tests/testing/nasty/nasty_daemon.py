import subprocess
import sys
from pathlib import Path


def test_leaves_a_daemon_in_a_session_of_its_own():
    program = "import time; time.sleep(600)"
    daemon = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    Path("daemon.pid").write_text(str(daemon.pid))
    daemon.returncode = 0  # nobody waits for it
