"""Finished groups outside a warehouse: as Parquet in folders or an object store, each with a manifest.

`places`     a folder or a URL: files of rows written and read, and the manifest that makes them count.
`groups`     what is staged of a run: its plan once, and one folder a group; needs no warehouse.
`registered` which groups of a run a warehouse knows to be staged, and where.
"""
