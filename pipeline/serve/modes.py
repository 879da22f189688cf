"""The three retrieval modes: which model embeds queries and which embeds documents.

`teacher`: the teacher embeds both. `standard`: the student embeds both. `asymmetric`: the student embeds queries and
the teacher documents, so that an index of the teacher's vectors serves a cheaper query encoder without re-indexing.
"""

MODES = ("teacher", "standard", "asymmetric")
