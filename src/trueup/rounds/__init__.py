"""The loop closed on itself: iterative DPO in `run`, best-of-N in `best_of_n`.

Nothing is imported here: the settings are read by the project that the rest stands on.
"""
