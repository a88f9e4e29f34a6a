def test_needs_what_cannot_be_had():
    pass
