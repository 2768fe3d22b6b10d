from hypothesis import settings

# The first example after an import is slow; no test here is about time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
