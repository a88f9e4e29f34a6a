def test_raises_what_ctrl_c_raises():
    raise KeyboardInterrupt


def test_after():
    pass
