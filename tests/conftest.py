"""What every test may ask for: a generator, and the library's settings put back afterwards."""

import os

# threads that spin take part in smaller work: these tests want them to, but not for long, as there
# are several processes of them
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastnorm

settings.register_profile(
    "fastnorm",
    deadline=None,  # the machine is shared
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastnorm")


@pytest.fixture
def rng():
    return np.random.default_rng(20240611)


@pytest.fixture(autouse=True)
def _default_settings():
    isa = fastnorm.get_isa()
    yield
    fastnorm.set_isa(isa)
    fastnorm.set_num_threads(0)


@pytest.fixture(params=fastnorm.available_isas())
def isa(request):
    fastnorm.set_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    fastnorm.set_num_threads(request.param)
    return request.param
