"""The real data sets that SSL_NB_DATA names, where it is set."""

import os

import pytest

real = os.environ.get("SSL_NB_DATA", "")


def needs(name):
    "A mark: skip the test where SSL_NB_DATA has no folder of this name."
    here = bool(real) and os.path.isdir(os.path.join(real, name))
    return pytest.mark.skipif(not here, reason=f"SSL_NB_DATA has no {name}")
