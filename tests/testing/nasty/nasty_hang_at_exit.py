import threading


def test_leaves_a_thread_that_nobody_joins():
    threading.Thread(target=threading.Event().wait).start()
