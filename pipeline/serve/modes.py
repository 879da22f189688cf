"""The three retrieval modes: which model embeds queries and which embeds documents. And what they are compared with.

`teacher`: the teacher embeds both. `standard`: the student embeds both. `asymmetric`: the student embeds queries and
the teacher documents, so that an index of the teacher's vectors serves a cheaper query encoder without re-indexing.

`start`: the checkpoint that the student was made from embeds both, untouched and without a head. It is no way to serve
a teacher's index; standard mode below it has lost by fitting.
"""

MODES = ("teacher", "standard", "asymmetric")
START = "start"
