"""Bad input is refused in one line."""

import pytest

from moe_beyond.errors import InputError


def refused(message, call, *args, **options):
    """The call raises an InputError of one line, in which the pattern `message` occurs."""
    with pytest.raises(InputError, match=message) as caught:
        call(*args, **options)
    assert len(str(caught.value).splitlines()) == 1
