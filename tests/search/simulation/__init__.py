"""Random programs over the real service, in virtual time and in random order.

A program (`programs`) is a list of steps: callers come and are cancelled, clocks jump, the upstream
fails. `world` runs a program on a loop whose tasks wake in random order (`loop`) against the
emulator's model (`upstream`), and after every turn of the loop checks invariants by what it has
logged (`books`). `search` lets hypothesis look for a program that breaks one::

    pytest search/test_simulation.py --programs 5000 --hypothesis-seed 7
    python -m search.simulation --programs 5000 --seed 7 [--as-found]

Both run in ``tests`` and stop at the first program that fails, and shrink it unless ``--as-found``
is given. The failure begins with ``after 37 programs (of 5000, seed 7): `` and ends with a line
that runs its program again. ``PYTHONPATH`` may name another copy of the library.
"""
