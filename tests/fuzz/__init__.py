"""Fuzzing of everything that reads what others have written.

Real files, and real answers of a Hub, are changed at random and read in a process of its own, of which
memory and time are limited. Each is either read, or refused in one line.

    python -m tests.fuzz.child CORPUS SEED SECONDS            # what the tests run
    python -m tests.fuzz.child CORPUS SEED 0 READER:NUMBER    # one input again
"""
