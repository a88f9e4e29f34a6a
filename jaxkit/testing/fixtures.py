"""The pytest fixture ``numeric_baseline``: import it in a conftest.py."""

import os
import re
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import pytest

from jaxkit.errors import UserError

_TAKEN = pytest.StashKey[dict[Path, str]]()
"""The test that each baseline of this session belongs to."""


@pytest.fixture
def numeric_baseline(request: pytest.FixtureRequest) -> Callable:
    """Compares records with the baseline of the test: ``numeric_baseline(linen_records(model, images))``.

    The baseline is ``baselines/<file>.<test>.json`` beside the test file, of a second call in a test
    ``<file>.<test>.2.json``. With NUMERIC_BASELINE=record in the environment, as under ``scripts/run_tests.py
    --baseline record``, it is written in place of that, with the reason in NUMERIC_BASELINE_REASON. A stale one skips
    the test, and the runner counts it apart. ``tolerances``, by role, go before those of
    :data:`jaxkit.testing.baselines.TOLERANCES`.

    Raises:
        UserError: if two tests would have one baseline, as their names differ in what no file name has.
    """
    calls = count(1)
    return lambda records, tolerances=None: _checked(request, next(calls), records, tolerances)


def _checked(request: pytest.FixtureRequest, call: int, records, tolerances: Mapping[str, float] | None) -> None:
    from jaxkit.testing import baselines

    path, mode = _path(request, call), os.environ.get("NUMERIC_BASELINE", "check")
    if mode == "record":
        baselines.record(records, path, os.environ.get("NUMERIC_BASELINE_REASON", ""), tolerances)
        request.node.user_properties.append(("baseline", "recorded"))
        return
    if mode != "check":
        raise ValueError(f"NUMERIC_BASELINE is check or record, not {mode!r}")
    try:
        baselines.check(records, path, tolerances)
    except baselines.BaselineStale as error:
        request.node.user_properties.append(("baseline", "STALE"))
        pytest.skip(str(error))


def _path(request: pytest.FixtureRequest, call: int) -> Path:
    """The file of a test's baseline, which is no other test's."""
    file, names = Path(request.path), request.node.nodeid.partition("::")[2].replace("::", ".")
    name = re.sub(r"[^\w.=-]+", "-", names).strip("-") + (f".{call}" if call > 1 else "")
    path = file.parent / "baselines" / f"{file.stem}.{name}.json"
    owner = request.session.stash.setdefault(_TAKEN, {}).setdefault(path, request.node.nodeid)
    if owner != request.node.nodeid:
        raise UserError(f"{path} is the baseline of {owner} and of {request.node.nodeid}: give one another name or id")
    return path
