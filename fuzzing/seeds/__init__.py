"""First inputs, made by running the real thing: operations on KVM, hostile guests, the compiler.

Needed only when a corpus is begun anew; what came of them is committed.
"""
