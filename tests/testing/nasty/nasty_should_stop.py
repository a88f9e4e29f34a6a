def test_passes_and_asks_the_session_to_stop(request):
    request.session.shouldstop = "enough"
