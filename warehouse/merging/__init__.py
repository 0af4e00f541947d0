"""Warehouses of shards and staged groups in, one warehouse out: the rows of `elw merge`, without statistics.

`sources`   what is given: which runs a file or a stage holds, their plans, and which groups.
`settling`  which run is meant, and that all sources hold the same plan and calibration of it.
`taking`    groups of a source into a file, so many in a transaction.
`run`       all of it, one after the other.
"""
