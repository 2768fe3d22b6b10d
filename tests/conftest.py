from hypothesis import settings

# The first example after an import is slow; no test here is about time.
settings.register_profile("untimed", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("untimed")
