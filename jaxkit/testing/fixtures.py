"""The pytest fixture ``numeric_baseline``: import it in a conftest.py."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


@pytest.fixture
def numeric_baseline(request: pytest.FixtureRequest) -> Callable:
    """Compares records with the baseline of the test: ``numeric_baseline(linen_records(model, images))``.

    The baseline is ``baselines/<file>.<test>.json`` beside the test file. With NUMERIC_BASELINE=record in the
    environment, as under ``scripts/run_tests.py --baseline record``, it is written in place of that, with the reason
    in NUMERIC_BASELINE_REASON. A stale one skips the test, and the runner counts it apart.
    """
    return lambda records, tolerances=None: _checked(request, records, tolerances)


def _checked(request: pytest.FixtureRequest, records, tolerances: Mapping[str, float] | None) -> None:
    from jaxkit.testing import baselines

    file = Path(request.path)
    name = re.sub(r"[^\w.=-]+", "-", request.node.name).strip("-")
    path = file.parent / "baselines" / f"{file.stem}.{name}.json"
    mode = os.environ.get("NUMERIC_BASELINE", "check")
    if mode == "record":
        baselines.record(records, path, os.environ.get("NUMERIC_BASELINE_REASON", ""), tolerances)
        request.node.user_properties.append(("baseline", "recorded"))
        return
    if mode != "check":
        raise ValueError(f"NUMERIC_BASELINE is check or record, not {mode!r}")
    try:
        baselines.check(records, path)
    except baselines.BaselineStale as error:
        request.node.user_properties.append(("baseline", "STALE"))
        pytest.skip(str(error))
