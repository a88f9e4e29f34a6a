def test_passes_and_the_session_cannot_finish():
    pass
