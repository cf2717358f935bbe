"""Where files and objects lie: local folders and object stores, one lease for writers, one cache for a node.

In: URIs and `StorageConfig`. Out: open files, small objects, and errors that name the place and what to do
about it. Open `filesystem.py` first.
"""
