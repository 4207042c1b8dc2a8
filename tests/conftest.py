"""What every test has: hypothesis profiles (`--hypothesis-profile=intense`), the fake device, the fixture `device`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import fake_device
from tinykron import backend
from tinykron.errors import DeviceError

os.environ["TINYKRON_CALIBRATION"] = "off"  # the order of a product must not depend on how busy the machine is

assert fake_device.FAKE is backend.get("fake")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it to themselves

# The fixture `device` holds for a whole test, whatever the examples: hypothesis need not worry about its scope.
settings.register_profile(
    "quick",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=100, derandomize=False)
settings.register_profile("intense", settings.get_profile("ci"), max_examples=1000)
settings.load_profile("quick")


@pytest.fixture(params=["cpu", "fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test once per device, with that device as the default; its value is the name."""
    try:
        backend.get(request.param)
    except DeviceError as error:
        pytest.skip(f"no CUDA GPU: {error}")
    with backend.device(request.param):
        yield request.param
