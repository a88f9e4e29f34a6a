import os
import shutil
import tempfile


def test_leaves_the_process_in_a_folder_that_is_gone():
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    shutil.rmtree(folder)


def test_after():
    pass
