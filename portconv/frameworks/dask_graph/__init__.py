"""Convolutions of arrays that lie in chunks, put off until somebody asks: which chunk reads what, and the graph of it.

`halos` says in integers which cells of one array go with a block of another, `graph` makes Dask's tasks of that, and
`tasks` is what they run, on chunks of whichever library.
"""
