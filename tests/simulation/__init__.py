"""The whole product in a virtual world that breaks: one seed = one story, decided by nothing but the seed.

`clock` runs plain sync code in greenlets on a virtual clock; `knobs` is the table of what may go wrong; `store`,
`market`, `objects`, `hosts`, `users` and, in some worlds, `slack` are the world; `ports` puts faults between the
product and the world; `invariants` judges. `python -m tests.simulation SEEDS=n [SEED=s]` runs seeds, the sweep and the
mutants.
"""
