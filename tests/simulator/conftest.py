"""Property tests here call compiled functions: the first example pays for the compilation."""

from hypothesis import settings

settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")
