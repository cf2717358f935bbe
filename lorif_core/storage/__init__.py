"""Access to local folders and object stores, a lease for writers, and a cache per node.

In: URIs and `StorageConfig`. Out: open files, small objects, and errors that name the location and the remedy.
Open `filesystem.py` first.
"""
