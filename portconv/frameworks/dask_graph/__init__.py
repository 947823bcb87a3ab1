"""Operations on Dask's arrays, which lie in chunks: a graph of tasks, which Dask runs when a program asks for results.

`halos` finds in integers which cells a block of a result reads, `graph` and `building` make the graph of that, and
`tasks` has what the tasks run, on chunks of any library.
"""
