"""Which of the voices are installed here."""

from collections.abc import Callable

import pytest

from mtsk.data.spoken import espeak, flite


def skip_without(load: Callable[[], object]) -> None:
    try:
        load()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def flite_installed():
    skip_without(flite._library)


@pytest.fixture
def espeak_installed():
    skip_without(espeak._library)
